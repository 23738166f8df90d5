package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// bench is one run of the program: its folder, its servers, and what came of it.
type bench struct {
	o       options
	dir     string
	device  device
	outputs int // files that fio wrote
	seed    int

	peers  []*peer
	extra  []*daemon  // of a job apart
	hvd    *daemon    // nil before the first job
	logCap units.Size // of hvd's store
	now    state      // that hvd is in
	reach  reach      // of that state
	placed string     // what placing the data in that state came to
	void   []string   // why that state is not what it should be

	report report
	say    io.Writer // progress
}

// run measures what the options say, and writes the report of what was finished, also when something failed.
func run(ctx context.Context, o options) (err error) {
	b := &bench{o: o, say: os.Stderr}
	if err := o.checkPlace(); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(o.dir, "hvb"); err != nil { // short, since sockets lie in it
		return err
	}
	b.device = deviceOf(b.dir)
	defer func() { err = errors.Join(err, b.close()) }()
	if b.report.Machine, err = describeMachine(ctx, o, b.dir); err != nil {
		return err
	}
	began := time.Now()
	err = b.measureAll(ctx)
	b.report.TookSeconds = time.Since(began).Seconds()
	return errors.Join(err, b.report.write(o))
}

func (b *bench) measureAll(ctx context.Context) (err error) {
	b.report.begin(b.o)
	if b.report.Data, err = b.checkData(ctx); err != nil {
		return err
	}
	for _, j := range b.o.jobs {
		began := time.Now()
		fmt.Fprintf(b.say, "%s %s: %s\n", began.Format("15:04:05"), j.name, j.title)
		var s section
		if j.apart != nil {
			s, err = j.apart(ctx, b)
		} else {
			s, err = b.compare(ctx, j)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", j.name, err)
		}
		s.Name, s.Title, s.TookSeconds = j.name, j.title, time.Since(began).Seconds()
		b.report.Sections = append(b.report.Sections, s)
		s.progress(b.say)
	}
	return nil
}

// checkPlace wants room and programs before anything is made.
func (o options) checkPlace() error {
	free, err := freeBytes(o.dir)
	if err != nil {
		return err
	}
	if need := o.needBytes(); free < need {
		return fmt.Errorf("%s has %s free and up to %s are needed: say --dir", o.dir, units.Size(free).Human(), units.Size(need).Human())
	}
	for _, program := range []string{"hvd"} {
		if _, err := os.Stat(o.bin + "/" + program); err != nil {
			return fmt.Errorf("%w: run make build, or say --bin", err)
		}
	}
	return nil
}

func (b *bench) close() error {
	var all error
	for _, p := range b.peers {
		all = errors.Join(all, p.proc.stop())
	}
	for _, d := range b.extra {
		all = errors.Join(all, d.stop())
	}
	if b.hvd != nil {
		all = errors.Join(all, b.hvd.stop())
	}
	if b.o.keep {
		fmt.Fprintf(b.say, "kept: %s\n", b.dir)
		return all
	}
	return errors.Join(all, os.RemoveAll(b.dir))
}

// nextSeed is another one each time: with fio's default each run would write the same bytes again.
func (b *bench) nextSeed() int {
	b.seed++
	return b.seed * 1000003
}

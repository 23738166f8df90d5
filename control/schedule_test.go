package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/control/config"
	"github.com/hyper-nixos/hyper-nixos/internal/retention"
)

// scheduleTest is a Control whose clock stands still.
type scheduleTest struct {
	t      *testing.T
	engine *fakeEngine
	cfg    *config.Loaded
	clock  atomic.Int64 // ns since the epoch
	c      *Control
}

func newScheduleTest(t *testing.T) *scheduleTest {
	s := &scheduleTest{t: t, engine: newFakeEngine(), cfg: testConfig(t)}
	s.set("2026-11-29T06:15:30Z")
	s.open()
	t.Cleanup(s.close)
	return s
}

func (s *scheduleTest) now() time.Time { return time.Unix(0, s.clock.Load()).UTC() }

func (s *scheduleTest) set(text string) {
	s.t.Helper()
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		s.t.Fatal(err)
	}
	s.clock.Store(at.UnixNano())
}

func (s *scheduleTest) open() {
	s.t.Helper()
	var err error
	s.c, err = Open(s.t.Context(), Options{
		Config: s.cfg, Now: s.now,
		OpenEngine: func(context.Context, config.Config, *slog.Logger) (Engine, error) { return s.engine, nil },
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *scheduleTest) close() {
	if err := s.c.Close(context.Background()); err != nil {
		s.t.Error(err)
	}
}

// run moves the clock on and lets the schedules run. The Control's own goroutine may have been faster: the result is the same.
func (s *scheduleTest) run(d time.Duration) {
	s.clock.Add(int64(d))
	s.c.runSchedules(s.t.Context())
}

func (s *scheduleTest) names(volume string) (all []string) {
	s.t.Helper()
	snaps, err := s.c.Snapshots(volume)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, snap := range snaps {
		all = append(all, snap.Name)
	}
	return all
}

func (s *scheduleTest) expect(volume string, want ...string) {
	s.t.Helper()
	if got := s.names(volume); !slices.Equal(got, want) {
		s.t.Errorf("at %v %s has %v, want %v", s.now(), volume, got, want)
	}
}

func (s *scheduleTest) schedule(spec ScheduleSpec) Schedule {
	s.t.Helper()
	got, err := s.c.SetSchedule(spec)
	if err != nil {
		s.t.Fatal(err)
	}
	return got
}

// A schedule takes one snapshot in each period, one for all periods that were missed, and deletes what it does not keep; but nothing that is not its own, is protected, or has a clone.
func TestScheduleOfAVolume(t *testing.T) {
	s := newScheduleTest(t)
	newVolume(t, s.c, "v")
	if _, err := s.c.CreateSnapshot(t.Context(), "v", "auto-20200101T000000Z"); err != nil { // a user's, whatever it is called
		t.Fatal(err)
	}
	user := "auto-20200101T000000Z"
	s.schedule(ScheduleSpec{Target: "v", Every: time.Hour, Keep: retention.Rules{Last: 2, Daily: 2}})
	s.run(0)
	s.expect("v", user, "auto-20261129T061530Z")
	s.run(time.Minute)
	s.expect("v", user, "auto-20261129T061530Z")
	s.run(44 * time.Minute) // 7:00:30
	s.run(time.Hour)
	s.expect("v", user, "auto-20261129T070030Z", "auto-20261129T080030Z")
	if got := s.c.Schedules(); len(got) != 1 || got[0].Target != "v" || got[0].LastRun.Format(time.TimeOnly) != "08:00:30" || got[0].NextRun.Format(time.TimeOnly) != "09:00:00" || got[0].Error != "" {
		t.Errorf("%+v", got)
	}

	s.close()
	s.set("2026-12-02T10:20:00Z")
	s.open()
	s.run(0)
	s.run(0)
	s.expect("v", user, "auto-20261129T080030Z", "auto-20261202T102000Z") // one for three days; last and daily keep the two
	s.engine.edit("v", 1, func(i *blockstore.SnapshotInfo) { i.Protected = true })
	s.run(time.Hour)
	s.run(time.Hour)
	cloned := s.engine.edit("v", 2, func(i *blockstore.SnapshotInfo) { i.Clones = 1 })
	if _, err := s.c.RenameVolume(t.Context(), "v", "w"); err != nil {
		t.Fatal(err)
	}
	for range 30 {
		s.run(time.Hour)
	}
	got := s.names("w")
	// Protected, cloned, the last of the 2nd, the last two.
	want := []string{user, "auto-20261129T080030Z", cloned, "auto-20261202T232000Z", "auto-20261203T172000Z", "auto-20261203T182000Z"}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if err := s.c.DeleteSchedule("w"); err != nil {
		t.Fatal(err)
	}
	s.run(48 * time.Hour)
	s.expect("w", got...)
	if err := s.c.DeleteSchedule("w"); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("deleted twice: %v", err)
	}
}

func TestScheduleOfAGroup(t *testing.T) {
	s := newScheduleTest(t)
	for _, name := range []string{"a", "b"} {
		newVolume(t, s.c, name)
	}
	if _, err := s.c.SetGroup("g", []string{"a", "b"}); err != nil {
		t.Fatal(err)
	}
	s.schedule(ScheduleSpec{Target: "@g", Every: 24 * time.Hour, Keep: retention.Rules{Last: 1}})
	s.schedule(ScheduleSpec{Target: "a", Every: 24 * time.Hour, Keep: retention.Rules{Last: 3}})
	s.run(0)
	s.run(24 * time.Hour)
	s.expect("b", "auto-g-20261130T061530Z")
	if got := s.names("a"); len(got) != 3 || !slices.Contains(got, "auto-g-20261130T061530Z") || !slices.Contains(got, "auto-20261129T061530Z") {
		t.Errorf("two schedules of one volume: %v", got)
	}
	if err := s.c.DeleteGroup("g"); !errors.Is(err, ErrRefused) {
		t.Errorf("the group was pulled away under its schedule: %v", err)
	}
	if got := s.c.Schedules(); len(got) != 2 || got[0].Target != "a" || got[1].Target != "@g" {
		t.Errorf("%+v", got)
	}
	if err := s.c.DeleteVolume(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	s.run(24 * time.Hour)
	s.expect("b", "auto-g-20261201T061530Z")
	if got := s.c.Schedules(); len(got) != 1 {
		t.Errorf("a schedule of a volume that is gone: %+v", got)
	}
	if err := errors.Join(s.c.DeleteSchedule("@g"), s.c.DeleteGroup("g")); err != nil {
		t.Error(err)
	}
}

// A clock that goes back takes nothing twice; one that was years ahead does not stop a schedule for years.
func TestScheduleAndTheClock(t *testing.T) {
	s := newScheduleTest(t)
	newVolume(t, s.c, "v")
	s.schedule(ScheduleSpec{Target: "v", Every: time.Hour})
	s.run(0)
	s.run(-30 * time.Second)
	s.expect("v", "auto-20261129T061530Z")
	s.set("2099-01-01T00:00:00Z")
	s.run(0)
	s.set("2026-11-29T07:10:00Z")
	s.run(0)
	s.run(time.Hour)
	s.expect("v", "auto-20261129T061530Z", "auto-20990101T000000Z", "auto-20261129T071000Z", "auto-20261129T081000Z")
}

// What was taken while the clock was ahead does not count as the youngest: else all that is taken afterwards would be deleted at once.
func TestRetentionAndTheClock(t *testing.T) {
	s := newScheduleTest(t)
	newVolume(t, s.c, "v")
	s.schedule(ScheduleSpec{Target: "v", Every: time.Hour, Keep: retention.Rules{Last: 2, Daily: 1}})
	s.run(0)
	s.set("2099-01-01T00:00:00Z")
	s.run(0)
	s.run(time.Hour)
	s.run(time.Hour)
	s.expect("v", "auto-20990101T010000Z", "auto-20990101T020000Z")
	s.set("2026-11-29T09:00:00Z")
	s.run(0)
	s.run(time.Hour)
	s.run(time.Hour)
	s.expect("v", "auto-20990101T010000Z", "auto-20990101T020000Z", "auto-20261129T100000Z", "auto-20261129T110000Z")
	verdicts, err := s.c.Retention("v", retention.Rules{Last: 1})
	if err != nil || len(verdicts) != 4 || fmt.Sprint(verdicts[0].Reasons, verdicts[2].Reasons, verdicts[3].Reasons) != "[ahead] [] [last]" {
		t.Errorf("%+v, %v", verdicts, err)
	}
	s.set("2099-01-01T03:00:00Z") // their time has come
	s.run(0)
	s.expect("v", "auto-20990101T020000Z", "auto-20990101T030000Z")
}

// What cannot be deleted does not make a schedule take one snapshot after the other.
func TestScheduleThatCannotThin(t *testing.T) {
	s := newScheduleTest(t)
	newVolume(t, s.c, "v")
	s.schedule(ScheduleSpec{Target: "v", Every: time.Hour, Keep: retention.Rules{Last: 1}})
	s.run(0)
	s.engine.undeletable.Store(true)
	s.run(time.Hour)
	for range 3 {
		s.run(scheduleLook)
	}
	s.expect("v", "auto-20261129T061530Z", "auto-20261129T071530Z")
	if got := s.c.Schedules(); !strings.Contains(got[0].Error, "fake") {
		t.Errorf("%+v", got)
	}
	s.engine.undeletable.Store(false)
	s.run(time.Hour)
	if got := s.names("v"); len(got) != 1 || s.c.Schedules()[0].Error != "" {
		t.Errorf("%v, %+v", got, s.c.Schedules())
	}
}

func TestScheduleThatFails(t *testing.T) {
	s := newScheduleTest(t)
	newVolume(t, s.c, "v")
	if _, err := s.c.CreateSnapshot(t.Context(), "v", "auto-20261129T061530Z"); err != nil {
		t.Fatal(err)
	}
	s.schedule(ScheduleSpec{Target: "v", Every: time.Hour})
	s.run(0)
	if got := s.c.Schedules(); !strings.Contains(got[0].Error, "exists") || !strings.Contains(fmt.Sprint(s.c.Status().Problems), "schedule of v failed") {
		t.Errorf("%+v, %v", got, s.c.Status().Problems)
	}
	s.run(time.Second)
	s.expect("v", "auto-20261129T061530Z", "auto-20261129T061531Z")
	if got := s.c.Schedules(); got[0].Error != "" || len(s.c.Status().Problems) != 0 {
		t.Errorf("%+v, %v", got, s.c.Status().Problems)
	}
	for _, bad := range []ScheduleSpec{
		{Target: "v", Every: time.Second}, {Target: "v", Every: 400 * 24 * time.Hour}, {Target: "v", Every: time.Minute + 1}, {Target: "v", Every: time.Hour, Keep: retention.Rules{Last: -1}},
		{Target: "", Every: time.Hour}, {Target: "@", Every: time.Hour}, {Target: ".import-x", Every: time.Hour},
	} {
		if _, err := s.c.SetSchedule(bad); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	for _, target := range []string{"x", "@x"} {
		if _, err := s.c.SetSchedule(ScheduleSpec{Target: target, Every: time.Hour}); !errors.Is(err, block.ErrNotFound) {
			t.Errorf("%s: %v", target, err)
		}
	}
}

// The dry run says what the schedule does, and does nothing.
func TestRetentionDryRun(t *testing.T) {
	s := newScheduleTest(t)
	newVolume(t, s.c, "v")
	s.schedule(ScheduleSpec{Target: "v", Every: time.Hour})
	for range 4 {
		s.run(time.Hour)
	}
	s.engine.edit("v", 0, func(i *blockstore.SnapshotInfo) { i.Protected = true })
	s.engine.edit("v", 1, func(i *blockstore.SnapshotInfo) { i.Clones = 1 })
	before := s.names("v")
	verdicts, err := s.c.Retention("v", retention.Rules{Last: 1, Yearly: 1})
	var got []string
	for _, v := range verdicts {
		got = append(got, fmt.Sprint(v.Reasons))
	}
	if want := "[[protected] [cloned] [] [] [last yearly]]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("%v, %v, want %s", got, err, want)
	}
	if !slices.Equal(s.names("v"), before) {
		t.Error("the dry run deleted something")
	}
	if verdicts, err := s.c.Retention("v", retention.Rules{}); err != nil || len(verdicts) != 5 || len(verdicts[3].Reasons) != 1 {
		t.Errorf("without a rule: %+v, %v", verdicts, err)
	}
	if _, err := s.c.Retention("x", retention.Rules{}); !errors.Is(err, block.ErrNotFound) {
		t.Error(err)
	}
}

// What an older program wrote stays readable, and is written the same.
func TestGoldenSchedules(t *testing.T) {
	file := schedulesFile{}
	if err := readState("testdata/schedules-1.json", schedulesHeader, &file); err != nil || len(file.Schedules) != 2 || file.Schedules[0].every() != 15*time.Minute || file.Schedules[1].key() != "@shop" || file.Schedules[1].keep().Yearly != 6 {
		t.Fatalf("%+v, %v", file, err)
	}
	path := filepath.Join(t.TempDir(), "schedules.json")
	if err := writeState(path, file); err != nil {
		t.Fatal(err)
	}
	want, _ := os.ReadFile("testdata/schedules-1.json")
	if got, err := os.ReadFile(path); err != nil || string(got) != string(want) {
		t.Errorf("%v: %s", err, got)
	}
}

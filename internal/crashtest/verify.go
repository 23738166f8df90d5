package crashtest

import "fmt"

// Verifier judges images of one recorder's store. Its cuts must come in the order of time. It belongs to one goroutine.
type Verifier struct {
	r    *Recorder
	base []*base
}

// base is a state of a client that every later image includes.
type base struct {
	state *State
	ops   int // the first so many operations are in state
}

// NewVerifier returns a verifier of what r records from its beginning on. begin are the states that r was made with.
func NewVerifier(r *Recorder, begin []*State) *Verifier {
	v := &Verifier{r: r}
	for _, s := range begin {
		v.base = append(v.base, &base{state: s.clone()})
	}
	return v
}

// span is the part of a client's operations that an image may show: the least and the most operations whose state it is. An operation that is there in part counts for
// most only.
type span struct{ least, most int }

// ProcessDeath judges an image after the death of the process that wrote between two marks: before was taken when it still lived.
func (v *Verifier) ProcessDeath(img *Image, before, after Mark) error {
	for i := range v.base {
		if _, err := v.client(i, img, before.clients[i].replied, after.clients[i].issued); err != nil {
			return fmt.Errorf("after process death: %w", err)
		}
	}
	return nil
}

// PowerLoss judges an image of what a power loss between two marks left.
func (v *Verifier) PowerLoss(img *Image, before, after Mark) error {
	spans := make([]span, len(v.base))
	for i := range v.base {
		ops := v.noted(i, after.clients[i].issued)
		durable := before.clients[i].durable
		for durable < before.clients[i].replied && ops[durable].reply < before.flushed {
			durable++
		}
		for b := v.base[i]; b.ops < durable; b.ops++ {
			apply(b.state, ops[b.ops].op)
		}
		var err error
		if spans[i], err = v.client(i, img, durable, after.clients[i].issued); err != nil {
			return fmt.Errorf("after power loss: %w", err)
		}
	}
	return v.prefix(spans, after)
}

// prefix checks that, where an operation is there, all that were replied to before it was issued are there too.
func (v *Verifier) prefix(spans []span, after Mark) error {
	for i, s := range spans {
		if s.least == 0 {
			continue
		}
		last := v.noted(i, after.clients[i].issued)[s.least-1]
		for j, t := range spans {
			ops := v.noted(j, after.clients[j].issued)
			if t.most < len(ops) && ops[t.most].reply != 0 && ops[t.most].reply < last.issue {
				return fmt.Errorf("after power loss: client %d, %v is there, but client %d, %v is not, which was replied to before", i, last.op, j, ops[t.most].op)
			}
		}
	}
	return nil
}

// noted returns a copy of the first n operations of a client.
func (v *Verifier) noted(i, n int) []noted {
	v.r.mu.Lock()
	defer v.r.mu.Unlock()
	return append([]noted(nil), v.r.clients[i].ops[:n]...)
}

// client finds the part of client i's operations that an image shows. At least the first least operations must be there, and at most the first most can.
func (v *Verifier) client(i int, img *Image, least, most int) (span, error) {
	ops := v.noted(i, most)
	got := img.Clients[i]
	s := v.base[i].state.clone()
	for k := v.base[i].ops; k < least; k++ {
		apply(s, ops[k].op)
	}
	found := span{least: -1}
	var diffs []string
	try := func(whole, begun int) {
		d := got.diff(s)
		if d != "" {
			diffs = append(diffs, d)
			return
		}
		if found.least < 0 {
			found.least = whole
		}
		found.most = begun
	}
	try(least, least)
	for k := least; k < most; k++ {
		effects := ops[k].op.effects(s)
		for j, f := range effects {
			f(s)
			if j < len(effects)-1 {
				try(k, k)
			}
		}
		try(k+1, k+1)
	}
	if found.least >= 0 {
		return found, nil
	}
	err := fmt.Errorf("client %d shows no state from operation %d to %d of its run; against the first: %s; against the last: %s", i, least, most, diffs[0], diffs[len(diffs)-1])
	for k := max(0, least-3); k < most; k++ {
		err = fmt.Errorf("%w\n\t%d: %v (replied: %v)", err, k, ops[k].op, ops[k].reply != 0)
	}
	return span{}, err
}

func apply(s *State, op *Op) {
	for _, f := range op.effects(s) {
		f(s)
	}
}

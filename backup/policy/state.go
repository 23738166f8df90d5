package policy

import (
	"strings"
	"time"
)

// State is what came of a policy. The names of its fields are those of its file.
type State struct {
	Created    time.Time `json:"created"`
	LastStart  time.Time `json:"lastStart,omitzero"`
	LastDone   time.Time `json:"lastDone,omitzero"` // when the last run that succeeded began
	Backups    []string  `json:"backups,omitempty"` // of that run
	Error      string    `json:"error,omitempty"`   // of the last run; empty: it succeeded
	Failures   int       `json:"failures,omitempty"`
	LastPrune  time.Time `json:"lastPrune,omitzero"`
	LastVerify time.Time `json:"lastVerify,omitzero"`
	Damage     string    `json:"damage,omitempty"`    // what the last verify, copy, prune, forget or test failed with
	ToldMissed time.Time `json:"toldMissed,omitzero"` // that a backup is missing, since the last success

	LastTest  time.Time `json:"lastTest,omitzero"`
	Tests     []Test    `json:"tests,omitempty"`     // of LastTest
	BadVerify string    `json:"badVerify,omitempty"` // what the last verify failed with, however long ago that was
}

// Test is what came of a restore test. Its fields are those of the file, too.
type Test struct {
	Backups []string `json:"backups"` // the first was booted; or the one of a machine
	Seconds float64  `json:"seconds"` // until the guest answered
	Answer  string   `json:"answer,omitempty"`
	Error   string   `json:"error,omitempty"` // why it did not; empty: it passed
}

// BadTests is what the last tests failed with, empty if all passed.
func (s *State) BadTests() string {
	var all []string
	for _, t := range s.Tests {
		if t.Error != "" {
			all = append(all, t.Error)
		}
	}
	return strings.Join(all, "; ")
}

// Retries after a failure come after firstRetry, twice that, and so on, and at least every lastRetry.
const (
	firstRetry = 5 * time.Minute
	lastRetry  = time.Hour
)

// Next is when a policy is due, which may be in the past. zone is where At and days count.
func (p *Policy) Next(s State, zone *time.Location) time.Time {
	if s.Failures > 0 {
		retry := min(firstRetry<<min(s.Failures-1, 10), lastRetry)
		if again := s.LastStart.Add(retry); again.Before(p.regular(s.LastStart, zone)) {
			return again
		}
		return p.regular(s.LastStart, zone)
	}
	switch {
	case !s.LastStart.IsZero():
		return p.regular(s.LastStart, zone)
	case p.At == "":
		return s.Created
	}
	return p.atClock(s.Created, 1, zone)
}

// regular is the first regular time after a start: so much later, or at the time of day that the policy has, as many days on as it says.
func (p *Policy) regular(start time.Time, zone *time.Location) time.Time {
	if p.At == "" {
		return start.Add(p.Every.Duration())
	}
	return p.atClock(start, int(p.Every/day), zone)
}

// atClock is the time of day that the policy has, days after a moment; with 1, the next time that the clock shows it.
func (p *Policy) atClock(after time.Time, days int, zone *time.Location) time.Time {
	hour, minute, _ := p.clock() // was validated
	local := after.In(zone)
	on := func(days int) time.Time {
		return time.Date(local.Year(), local.Month(), local.Day()+days, hour, minute, 0, 0, zone)
	}
	if days == 1 && on(0).After(after) {
		return on(0)
	}
	return on(days)
}

// Due reports whether a policy is due. A clock that went back does not make it wait for what was the future.
func (p *Policy) Due(s State, now time.Time, zone *time.Location) bool {
	return !p.Next(s, zone).After(now) || s.LastStart.After(now.Add(time.Minute))
}

// Missing reports whether there is no backup that is young enough: the last one should have been followed by another half a period ago.
func (p *Policy) Missing(s State, now time.Time) bool {
	last := s.LastDone
	if last.IsZero() {
		last = s.Created
	}
	every := p.Every.Duration()
	return now.Sub(last) > every+every/2
}

// NeedsPrune and NeedsVerify report whether that is to be done after a backup.
func (p *Policy) NeedsPrune(s State, now time.Time) bool { return due(p.PruneEvery, s.LastPrune, now) }

// NeedsVerify reports whether the repository is to be verified after a backup. What has failed is done again a day later at the latest.
func (p *Policy) NeedsVerify(s State, now time.Time) bool {
	return due(again(p.VerifyEvery, s.BadVerify != ""), s.LastVerify, now)
}

// NeedsTest reports whether backups are to be booted after a backup. What has failed is done again a day later at the latest.
func (p *Policy) NeedsTest(s State, now time.Time) bool {
	return due(again(p.TestEvery, s.BadTests() != ""), s.LastTest, now)
}

func again(every Seconds, failed bool) Seconds {
	if failed {
		return min(every, day)
	}
	return every
}

func due(every Seconds, last, now time.Time) bool {
	return every > 0 && (now.Sub(last) >= every.Duration()-every.Duration()/20 || last.After(now))
}

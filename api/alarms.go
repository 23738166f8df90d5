package api

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/hyper-nixos/hyper-nixos/control"
)

// alarmsBeat is how often a line is sent while nothing changes, so that both ends notice when the other one is gone.
const alarmsBeat = 15 * time.Second

// alarmsLine is one line of GET /v1/alarms: an alarm, or an empty object as a sign of life.
type alarmsLine struct {
	*control.Alarm
	Text string `json:"text,omitempty"` // for people
	Next string `json:"next,omitempty"` // what to do about it
}

func lineOf(a control.Alarm) alarmsLine { return alarmsLine{&a, a.String(), a.Next()} }

// alarms serves GET /v1/alarms: a JSON object a line for each thing that is nearly full or full or as it should not be, and then, with ?follow=true, for each that changes. An empty object is a sign of life.
func alarms(c *control.Control) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := allow(r.Context(), control.ScopeRead); err != nil {
			fail(w, err)
			return
		}
		now, changes := c.Alarms().Subscribe(r.Context())
		w.Header().Set("Content-Type", "application/x-ndjson")
		w.Header().Set("Cache-Control", "no-store")
		connection, encoder := http.NewResponseController(w), json.NewEncoder(w)
		for i := range now {
			if encoder.Encode(lineOf(now[i])) != nil {
				return
			}
		}
		if r.URL.Query().Get("follow") != "true" {
			return
		}
		beat := time.NewTicker(alarmsBeat)
		defer beat.Stop()
		for {
			if connection.Flush() != nil {
				return
			}
			line := alarmsLine{}
			select {
			case alarm, more := <-changes:
				if !more {
					return
				}
				line = lineOf(alarm)
			case <-beat.C:
			case <-c.Background().Done():
				return
			}
			if connection.SetWriteDeadline(time.Now().Add(2*alarmsBeat)) != nil || encoder.Encode(line) != nil {
				return
			}
		}
	}
}

package api

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/control"
)

// metricsType is Prometheus's text format.
const metricsType = "text/plain; version=0.0.4; charset=utf-8"

// metric is a family of samples, one for each replication that has it.
type metric struct {
	name, kind, help string
	value            func(control.Replication) (float64, bool)
}

func always(f func(control.Replication) float64) func(control.Replication) (float64, bool) {
	return func(r control.Replication) (float64, bool) { return f(r), true }
}

var replicationMetrics = []metric{
	{"hvd_replication_rpo_seconds", "gauge", "Age of the last complete point: what a promotion now would lose. Missing until there is one.", func(r control.Replication) (float64, bool) {
		if r.RPOSeconds == nil {
			return 0, false
		}
		return *r.RPOSeconds, true
	}},
	{"hvd_replication_behind_bytes", "gauge", "What differs at the source from the last complete point. Missing where it is not known.", func(r control.Replication) (float64, bool) {
		if r.BehindBytes == nil {
			return 0, false
		}
		return float64(*r.BehindBytes), true
	}},
	{"hvd_replication_rate_bytes_per_second", "gauge", "Data of the point under way, or of the last one that had any, a second.", always(func(r control.Replication) float64 { return r.RateBytes })},
	{"hvd_replication_epoch", "gauge", "Epoch of this side.", always(func(r control.Replication) float64 { return float64(r.Epoch) })},
	{"hvd_replication_fenced", "gauge", "1 if the other side was promoted and this one takes no writes.", always(func(r control.Replication) float64 {
		if r.FencedBy != 0 {
			return 1
		}
		return 0
	})},
	{"hvd_replication_points_total", "counter", "Points that became complete since hvd started.", always(func(r control.Replication) float64 { return float64(r.Cycles) })},
	{"hvd_replication_failures_total", "counter", "Tries that did not, since hvd started.", always(func(r control.Replication) float64 { return float64(r.Failures) })},
	{"hvd_replication_data_bytes_total", "counter", "Data in complete points since hvd started.", always(func(r control.Replication) float64 { return float64(r.DataBytes) })},
	{"hvd_replication_wire_bytes_total", "counter", "What a source sent for that.", always(func(r control.Replication) float64 { return float64(r.WireBytes) })},
}

var labelEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// metrics serves GET /v1/metrics: the replications of volumes in Prometheus's text format.
func metrics(c *control.Control) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := allow(r.Context(), control.ScopeRead); err != nil {
			fail(w, err)
			return
		}
		all, text := c.Replications(r.Context()), &bytes.Buffer{}
		for _, m := range replicationMetrics {
			fmt.Fprintf(text, "# HELP %s %s\n# TYPE %s %s\n", m.name, m.help, m.name, m.kind)
			for _, one := range all {
				if value, has := m.value(one); has {
					fmt.Fprintf(text, "%s{volume=\"%s\",role=\"%s\"} %v\n", m.name, labelEscapes.Replace(one.Volume), one.Role, value)
				}
			}
		}
		w.Header().Set("Content-Type", metricsType)
		w.Header().Set("Cache-Control", "no-store")
		_, _ = w.Write(text.Bytes()) // the client has gone
	}
}

package api

import (
	"bufio"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/control"
)

// metricsType is the text format of Prometheus, version 0.0.4.
const metricsType = "text/plain; version=0.0.4; charset=utf-8"

// metrics serves GET /metrics: counters and sizes of the store, quotas of volumes, alarms, replications and repositories, for Prometheus. It costs no scan but of what replicas do not have yet, which is counted for 5 s at most.
func metrics(c *control.Control) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := allow(r.Context(), control.ScopeRead); err != nil {
			fail(w, err)
			return
		}
		status := c.Status() // looks at what alarms are about
		w.Header().Set("Content-Type", metricsType)
		out := bufio.NewWriter(w)
		m := exposition{out}
		m.family("hv_info", "gauge", "Version of hvd.")
		m.sample("hv_info", 1, "version", status.Version)
		m.family("hv_uptime_seconds", "gauge", "How long hvd has run.")
		m.sample("hv_uptime_seconds", float64(status.UptimeSeconds))
		m.family("hv_encrypted", "gauge", "1 if the store is encrypted at rest.")
		m.sample("hv_encrypted", number(status.Encryption != nil))
		m.alarms(c.Alarms().Now())
		m.store(c.Stats())
		m.volumes(c.Volumes())
		m.replications(c.Replications(r.Context()))
		m.repositories(c.Repositories())
		m.usage(c.RepositoryUsage())
		_ = out.Flush() // whoever hung up does not want it
	}
}

// exposition writes the text format. Errors of the writer below stay in it.
type exposition struct{ *bufio.Writer }

func (m exposition) family(name, kind, help string) {
	fmt.Fprintf(m, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// sample writes one value with labels, given as names and values.
func (m exposition) sample(name string, value float64, labels ...string) {
	m.WriteString(name)
	for i := 0; i+1 < len(labels); i += 2 {
		open := ","
		if i == 0 {
			open = "{"
		}
		fmt.Fprintf(m, "%s%s=\"%s\"", open, labels[i], labelEscapes.Replace(labels[i+1]))
	}
	if len(labels) > 0 {
		m.WriteString("}")
	}
	m.WriteString(" " + strconv.FormatFloat(value, 'g', -1, 64) + "\n")
}

var labelEscapes = strings.NewReplacer("\\", `\\`, "\"", `\"`, "\n", `\n`)

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// alarms writes each kind of alarm, those that are not raised with 0, so that rules find them.
func (m exposition) alarms(now []control.Alarm) {
	m.family("hv_alarm", "gauge", "0: ok; 1: near full; 2: nearly full, or raised; 3: full, writes are refused.")
	for _, kind := range control.AlarmKinds() {
		raised := false
		for _, a := range now {
			if a.Kind != kind {
				continue
			}
			raised = true
			labels := []string{"name", kind}
			if a.Volume != "" {
				labels = append(labels, "volume", a.Volume)
			}
			m.sample("hv_alarm", float64(a.Severity()), labels...)
		}
		if !raised {
			m.sample("hv_alarm", 0, "name", kind)
		}
	}
}

// store writes what blockstore.Stats has.
func (m exposition) store(s blockstore.Stats) {
	for _, g := range []struct {
		name, kind, help string
		value            float64
	}{
		{"hv_volumes", "gauge", "Volumes.", float64(s.Volumes)},
		{"hv_snapshots", "gauge", "Snapshots.", float64(s.Snapshots)},
		{"hv_logical_bytes", "gauge", "Sizes of all volumes together.", float64(s.LogicalBytes)},
		{"hv_nonzero_bytes", "gauge", "What volumes and snapshots refer to.", float64(s.NonZeroBytes)},
		{"hv_unique_bytes", "gauge", "That, each chunk counted once, before compression.", float64(s.UniqueBytes)},
		{"hv_stored_bytes", "gauge", "That in segments, after compression.", float64(s.StoredBytes)},
		{"hv_held_unused_bytes", "gauge", "Dead bytes of segments that wait for garbage collection.", float64(s.HeldUnusedBytes)},
		{"hv_metadata_bytes", "gauge", "Maps, chunk rows and hints.", float64(s.MetadataBytes)},
		{"hv_parity_bytes", "gauge", "Parity sidecars.", float64(s.ParityBytes)},
		{"hv_free_bytes", "gauge", "Free for the store, the reserve not included.", float64(s.FreeBytes)},
		{"hv_reserve_bytes", "gauge", "Kept for destage, deletes and garbage collection.", float64(s.ReserveBytes)},
		{"hv_log_used_bytes", "gauge", "Log files that cannot be recycled yet.", float64(s.LogUsedBytes)},
		{"hv_log_cap_bytes", "gauge", "Most that the log may take.", float64(s.LogCapBytes)},
		{"hv_stream_used_bytes", "gauge", "What streams of large writes take in the log beside its cap.", float64(s.StreamUsedBytes)},
		{"hv_stream_room_bytes", "gauge", "Most that streams may take so.", float64(s.StreamRoomBytes)},
		{"hv_undestaged_bytes", "gauge", "Data in the log alone.", float64(s.UndestagedBytes)},
		{"hv_destage_lag_seconds", "gauge", "Age of the oldest data in the log alone.", s.DestageLag.Seconds()},
		{"hv_history_bytes", "gauge", "Files of history.", float64(s.HistoryBytes)},
		{"hv_history_parity_bytes", "gauge", "Parity sidecars of files of history.", float64(s.HistoryParityBytes)},
		{"hv_damage_found_total", "counter", "Damaged columns of 4 KiB found since the start.", float64(s.DamageFound)},
		{"hv_damage_mended_total", "counter", "Damaged columns mended since the start.", float64(s.DamageMended)},
		{"hv_damage_lost_total", "counter", "Damaged columns that nothing mends, since the start.", float64(s.DamageLost)},
		{"hv_inline_repairs_total", "counter", "Reads that redundancy answered.", float64(s.InlineRepairs)},
		{"hv_corruptions_total", "counter", "Times that data failed its check.", float64(s.Corruptions)},
		{"hv_guest_read_bytes_total", "counter", "Read by guests.", float64(s.GuestReadBytes)},
		{"hv_guest_written_bytes_total", "counter", "Written by guests.", float64(s.GuestWrittenBytes)},
		{"hv_disk_written_bytes_total", "counter", "Written to disks: log, segments and metadata.", float64(s.DiskWrittenBytes)},
		{"hv_syncs_total", "counter", "Syncs of the log.", float64(s.Syncs)},
	} {
		m.family(g.name, g.kind, g.help)
		m.sample(g.name, g.value)
	}
}

// volumes writes what each volume holds, and its bounds where there are any.
func (m exposition) volumes(all []control.Volume) {
	m.family("hv_volume_size_bytes", "gauge", "Size of a volume.")
	for _, v := range all {
		m.sample("hv_volume_size_bytes", float64(v.SizeBytes), "volume", v.Name)
	}
	m.family("hv_volume_referenced_bytes", "gauge", "Data that a volume refers to, at least.")
	for _, v := range all {
		m.sample("hv_volume_referenced_bytes", float64(v.ReferencedBytes), "volume", v.Name)
	}
	m.family("hv_volume_quota_bytes", "gauge", "Bounds and reservation of a volume, by kind.")
	for _, v := range all {
		for _, q := range []struct {
			kind  string
			bytes uint64
		}{{"referenced", v.Quota.ReferencedBytes}, {"unique", v.Quota.UniqueBytes}, {"reserved", v.Quota.ReservedBytes}} {
			if q.bytes > 0 {
				m.sample("hv_volume_quota_bytes", float64(q.bytes), "volume", v.Name, "kind", q.kind)
			}
		}
	}
	m.family("hv_volume_unique_bytes", "gauge", "What a volume with a bound on it alone holds after reduction, with what was in the log, at the last survey.")
	for _, v := range all {
		if use := v.Unique; !use.MeasuredAt.IsZero() {
			m.sample("hv_volume_unique_bytes", float64(use.StoredBytes+use.LogBytes), "volume", v.Name)
		}
	}
	m.family("hv_volume_unique_error_bytes", "gauge", "How far that may be off, in 19 of 20 cases.")
	for _, v := range all {
		if use := v.Unique; !use.MeasuredAt.IsZero() {
			m.sample("hv_volume_unique_error_bytes", float64(use.ErrorBytes), "volume", v.Name)
		}
	}
}

package api

import (
	"net/http"

	"github.com/hyper-nixos/hyper-nixos/control"
	"github.com/hyper-nixos/hyper-nixos/control/replica"
)

// addReplicaGroups adds what another hvd asks for about groups of volumes, whose parts come as those of single ones do.
func addReplicaGroups(mux *http.ServeMux, c *control.Control, sender func(*http.Request) (control.ReplicaSender, error)) {
	mux.HandleFunc("POST /v1/replicagroups/{group}", answered(sender, func(r *http.Request, who control.ReplicaSender) (any, error) {
		var h replica.GroupHello
		if err := readBounded(r, &h, replica.MaxGroupMessage); err != nil {
			return nil, err
		}
		return c.ReplicaGroupHello(r.Context(), who, r.PathValue("group"), h)
	}))
	mux.HandleFunc("POST /v1/replicagroups/{group}/points/{point}", answered(sender, func(r *http.Request, who control.ReplicaSender) (any, error) {
		var m replica.Commit
		if err := readBounded(r, &m, replica.MaxGroupMessage); err != nil {
			return nil, err
		}
		return map[string]string{"point": r.PathValue("point")}, c.CommitReplicas(r.Context(), who, r.PathValue("group"), r.PathValue("point"), m)
	}))
}

// answered answers another hvd with what do returns.
func answered(sender func(*http.Request) (control.ReplicaSender, error), do func(*http.Request, control.ReplicaSender) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		answer := any(nil)
		who, err := sender(r)
		if err == nil {
			answer, err = do(r, who)
		}
		if err != nil {
			fail(w, err)
			return
		}
		reply(w, http.StatusOK, answer)
	}
}

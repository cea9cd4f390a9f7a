package node

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"sidus/image/catalog"
)

// Engine is what serves the roots of nodes.
type Engine string

// The engines.
const (
	EngineOwn    Engine = "sidus"  // package export/nfs
	EngineKernel Engine = "kernel" // the kernel's NFS server, package export/knfsd
)

// engineKey is the engine of the sessions in the catalog; none is EngineOwn.
const engineKey = "nfs_engine"

// EngineError says that nodes run from another engine: its file handles mean
// nothing to the one that is asked for, and the nodes would lose their roots.
type EngineError struct {
	Have, Want Engine
	Live       []Session
}

func (e *EngineError) Error() string {
	const shown = 3
	var nodes []string
	for _, s := range e.Live[:min(shown, len(e.Live))] {
		nodes = append(nodes, s.Label())
	}
	if more := len(e.Live) - shown; more > 0 {
		nodes = append(nodes, fmt.Sprintf("%d more", more))
	}
	return fmt.Sprintf("%s run from the NFS engine %q, whose file handles %q does not know: they would lose their roots. "+
		"Serve with --nfs-engine %s; or shut them down, and end the session of each with `sidus node delete --force --yes NODE` "+
		"(an unknown machine is listed again when it asks for something to boot)", strings.Join(nodes, ", "), e.Have, e.Want, e.Have)
}

// UseEngine notes which engine serves from now on. It fails with an
// *EngineError if a session lives that another engine has served.
func (r *Registry) UseEngine(ctx context.Context, want Engine) error {
	return r.catalog.Update(ctx, func(tx *sql.Tx) error {
		text, _, err := catalog.Meta(tx, engineKey)
		if err != nil {
			return err
		}
		have := Engine(text)
		if have == "" {
			have = EngineOwn
		}
		if have == want {
			return nil
		}
		live, err := collect(tx, scanSession, selectSession+` WHERE s.ended IS NULL ORDER BY s.opened`)
		if err != nil {
			return err
		}
		if len(live) > 0 {
			return &EngineError{Have: have, Want: want, Live: live}
		}
		return catalog.SetMeta(tx, engineKey, string(want))
	})
}

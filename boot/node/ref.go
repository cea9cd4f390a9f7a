package node

import (
	"database/sql"
	"fmt"

	"sidus/image/store"
)

// Ref names a snapshot for people and programs.
type Ref struct {
	ID     store.SnapshotID `json:"id"`
	Tree   string           `json:"tree"` // the tree's name today
	Number int              `json:"number"`
}

// String is tree@number, or the ID if the tree is not known.
func (r Ref) String() string {
	if r.Tree == "" {
		return string(r.ID)
	}
	return fmt.Sprintf("%s@%d", r.Tree, r.Number)
}

// Short is the beginning of the ID.
func (r Ref) Short() string { return string(r.ID[:min(8, len(r.ID))]) }

// refOf reports false if the snapshot does not exist (any more).
func refOf(tx *sql.Tx, id store.SnapshotID) (Ref, bool, error) {
	ref := Ref{ID: id}
	var deleted sql.NullInt64
	err := tx.QueryRow(`SELECT COALESCE(t.name, ''), n.number, n.deleted FROM snapshot n LEFT JOIN tree t ON t.id = n.tree
		WHERE n.id = ?`, string(id)).Scan(&ref.Tree, &ref.Number, &deleted)
	switch {
	case err == sql.ErrNoRows:
		return ref, false, nil
	case err != nil:
		return ref, false, fmt.Errorf("catalog: %w", err)
	}
	return ref, !deleted.Valid, nil
}

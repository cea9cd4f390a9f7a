package backup

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"time"

	"sidus/image"
	"sidus/image/catalog"
)

// NewestEvent tells when what is on record in a copy of a catalog, which r
// yields, last happened: what a backup is older than, it lacks. dir is a folder
// to work in.
func NewestEvent(ctx context.Context, r io.Reader, dir string) (at time.Time, err error) {
	stage, err := NewStage(image.Layout{Dir: dir})
	if err != nil {
		return at, err
	}
	defer func() { err = errors.Join(err, stage.Discard()) }()
	if err := stage.TakeCatalog(r); err != nil {
		return at, err
	}
	err = stage.Prepare(ctx, func(tx *sql.Tx) error {
		var millis int64
		err := tx.QueryRow(`SELECT COALESCE(MAX(at), 0) FROM event`).Scan(&millis)
		at = catalog.Time(millis)
		return err
	})
	return at, err
}

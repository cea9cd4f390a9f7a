package catalog

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
)

// The migrations, in order; NNNN_name.sql brings the schema to version NNNN.
// One that has been released is never changed.
//
//go:embed migrations/*.sql
var migrations embed.FS

func (c *Catalog) migrate(ctx context.Context) error {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return err
	}
	var version int
	if err := c.read.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version); err != nil {
		return err
	}
	if version == len(names) {
		return nil
	}
	// Another process may be doing the same: look again inside the lock.
	return c.Update(ctx, func(tx *sql.Tx) error {
		if err := tx.QueryRow(`PRAGMA user_version`).Scan(&version); err != nil {
			return err
		}
		if version > len(names) {
			return fmt.Errorf("%w: its schema is version %d, this sidus knows %d; use the newer sidus", ErrNewer, version, len(names))
		}
		for i := version; i < len(names); i++ {
			script, err := migrations.ReadFile(names[i])
			if err != nil {
				return err
			}
			if _, err := tx.Exec(string(script)); err != nil {
				return fmt.Errorf("migration %s: %w", names[i], err)
			}
		}
		_, err := tx.Exec(fmt.Sprintf(`PRAGMA user_version = %d`, len(names)))
		return err
	})
}

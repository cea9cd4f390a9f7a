package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"
)

// busyTimeout bounds how long a transaction waits for another process. No
// transaction lasts longer than a few milliseconds, so that this is reached
// only when a process is stopped in the middle of one.
const busyTimeout = 30 * time.Second

// Catalog is an open catalog. Its methods may be called from several
// goroutines.
type Catalog struct {
	path  string
	write *sql.DB // one connection: writers of one process queue here, not in SQLite
	read  *sql.DB
}

// ErrNewer is returned for a catalog that a newer Sidus has written.
var ErrNewer = errors.New("the catalog was written by a newer version of sidus")

// Create makes a new catalog at path, mode 0600. It fails if one is there.
func Create(ctx context.Context, path string) (*Catalog, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make the catalog: %w", err)
	}
	if err := file.Close(); err != nil {
		return nil, fmt.Errorf("make the catalog: %w", err)
	}
	return Open(ctx, path)
}

// Open opens the catalog at path and brings its schema up to date. The error
// wraps fs.ErrNotExist if there is none, ErrNewer if it is from the future.
func Open(ctx context.Context, path string) (*Catalog, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("open the catalog: %w", err)
	}
	c := &Catalog{path: path}
	if c.write, err = sql.Open("sqlite", dataSource(path, true)); err != nil {
		return nil, fmt.Errorf("open the catalog %s: %w", path, err)
	}
	c.write.SetMaxOpenConns(1)
	if c.read, err = sql.Open("sqlite", dataSource(path, false)); err != nil {
		return nil, errors.Join(fmt.Errorf("open the catalog %s: %w", path, err), c.Close())
	}
	c.read.SetMaxOpenConns(4)
	if err := c.migrate(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open the catalog %s: %w", path, explain(path, err)), c.Close())
	}
	return c, nil
}

func dataSource(path string, writable bool) string {
	query := url.Values{}
	query.Add("_pragma", fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds()))
	query.Add("_pragma", "journal_mode(WAL)")
	query.Add("_pragma", "synchronous(FULL)")
	query.Add("_pragma", "foreign_keys(ON)")
	if writable {
		query.Add("_txlock", "immediate")
	} else {
		query.Add("_pragma", "query_only(ON)")
	}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: query.Encode()}).String()
}

// Path returns the absolute path of the database.
func (c *Catalog) Path() string { return c.path }

// Close ends the use of the catalog.
func (c *Catalog) Close() error {
	var errs []error
	for _, db := range []*sql.DB{c.read, c.write} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}

// Update runs change in a transaction that no other writer can come between
// (BEGIN IMMEDIATE), and makes it durable. Nothing of it is kept if change
// returns an error. change must not run programs, wait, or touch the store.
func (c *Catalog) Update(ctx context.Context, change func(tx *sql.Tx) error) error {
	return explain(c.path, transact(ctx, c.write, change))
}

// UpdateWith is Update in which the catalog at path is the schema src, which
// change may also write to: nobody else may have it open. An empty path is
// Update.
func (c *Catalog) UpdateWith(ctx context.Context, path string, change func(tx *sql.Tx) error) (err error) {
	if path == "" {
		return c.Update(ctx, change)
	}
	// A database cannot be attached inside of a transaction: all of it happens
	// on one connection.
	conn, err := c.write.Conn(ctx)
	if err != nil {
		return fmt.Errorf("catalog: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if _, err := conn.ExecContext(ctx, `ATTACH ? AS src`, path); err != nil {
		return fmt.Errorf("catalog: attach %s: %w", path, explain(path, err))
	}
	defer func() {
		if _, detachErr := conn.ExecContext(context.WithoutCancel(ctx), `DETACH src`); detachErr != nil {
			err = errors.Join(err, fmt.Errorf("catalog: detach %s: %w", path, detachErr))
		}
	}()
	return explain(c.path, transact(ctx, conn, change))
}

// View runs query in a read transaction: all that it reads is of one moment.
func (c *Catalog) View(ctx context.Context, query func(tx *sql.Tx) error) error {
	return explain(c.path, transact(ctx, c.read, query))
}

// beginner is a *sql.DB or a *sql.Conn.
type beginner interface {
	BeginTx(ctx context.Context, options *sql.TxOptions) (*sql.Tx, error)
}

func transact(ctx context.Context, db beginner, body func(tx *sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("catalog: %w", err)
	}
	if err := body(tx); err != nil {
		_ = tx.Rollback() // the first error is the one that counts
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("catalog: %w", err)
	}
	return nil
}

// CopyTo writes a consistent copy of the catalog to the new file path, mode
// 0600.
func (c *Catalog) CopyTo(ctx context.Context, path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err == nil {
		err = file.Close()
	}
	if err != nil {
		return fmt.Errorf("copy the catalog: %w", err)
	}
	// It only reads, but a connection that is query_only refuses it.
	if _, err := c.write.ExecContext(ctx, `VACUUM INTO ?`, path); err != nil {
		return fmt.Errorf("copy the catalog to %s: %w", path, explain(c.path, err))
	}
	return nil
}

// Meta returns the value kept under key, and whether there is one.
func Meta(tx *sql.Tx, key string) (string, bool, error) {
	var value string
	err := tx.QueryRow(`SELECT value FROM meta WHERE key = ?`, key).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("catalog: read %s: %w", key, err)
	}
	return value, true, nil
}

// SetMeta keeps value under key.
func SetMeta(tx *sql.Tx, key, value string) error {
	_, err := tx.Exec(`INSERT INTO meta (key, value) VALUES (?, ?)
		ON CONFLICT (key) DO UPDATE SET value = excluded.value`, key, value)
	if err != nil {
		return fmt.Errorf("catalog: write %s: %w", key, err)
	}
	return nil
}

// Millis is the time as the catalog keeps it.
func Millis(t time.Time) int64 { return t.UnixMilli() }

// Time is the inverse of Millis; 0 is the zero time.
func Time(millis int64) time.Time {
	if millis == 0 {
		return time.Time{}
	}
	return time.UnixMilli(millis)
}

package store

import "errors"

// The classes of failures. Backends wrap them; callers test with errors.Is.
var (
	ErrBadName      = errors.New("not a valid name")
	ErrNotFound     = errors.New("not found")
	ErrExists       = errors.New("exists already")
	ErrInUse        = errors.New("in use")
	ErrNoSpace      = errors.New("no space left in the store")
	ErrUnavailable  = errors.New("cannot be read for now")
	ErrNestedVolume = errors.New("holds a nested subvolume or mount")
	ErrUnsupported  = errors.New("not supported by this store")
)

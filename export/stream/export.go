package stream

import (
	"context"
	"errors"
	"fmt"
	"io"

	"sidus/export/stream/paxtar"
)

// Source is what is exported.
type Source struct {
	// Manifest describes it. Its Kind says which of the others is set.
	Manifest Manifest
	// Root is where the snapshot is mounted, for a portable stream.
	Root string
	// Native is the payload of the other kinds, as store.NativeSender has
	// begun it. Export closes it.
	Native io.ReadCloser
}

// Export writes a stream to w. When it fails or ctx is done, the stream is cut
// off, so that no reader takes it for a whole one. A Write of w that blocks
// must be ended by whoever made w.
//
// Errors are those of w and of the source, and wrap ErrManifest if the manifest
// makes no sense.
func Export(ctx context.Context, w io.Writer, source Source, o WriterOptions) (result Result, err error) {
	if source.Native != nil {
		defer func() {
			if closeErr := source.Native.Close(); err == nil {
				err = closeErr
			}
		}()
	}
	if source.Manifest.Kind.Native() != (source.Native != nil) || (source.Root == "") == (source.Native == nil) {
		return Result{}, fmt.Errorf("%w: a %q stream of root %q", ErrManifest, source.Manifest.Kind, source.Root)
	}
	s, err := NewWriter(w, source.Manifest, o)
	if err != nil {
		return Result{}, err
	}
	defer s.Abort()
	var summary paxtar.Summary
	if source.Native != nil {
		_, err = s.ReadFrom(contextReader{ctx, source.Native})
	} else {
		summary, err = paxtar.Write(ctx, s, source.Root)
	}
	if err != nil {
		return Result{}, fmt.Errorf("export %s: %w", source.Manifest.Snapshot, err)
	}
	// The end says that the source ended well: only now is that known.
	if source.Native != nil {
		if err := source.Native.Close(); err != nil {
			return Result{}, fmt.Errorf("export %s: %w", source.Manifest.Snapshot, err)
		}
	}
	if result, err = s.Close(); err != nil {
		return Result{}, fmt.Errorf("export %s: %w", source.Manifest.Snapshot, err)
	}
	result.Omitted, result.OmittedCount = summary.Omitted, summary.OmittedCount
	return result, nil
}

// contextReader fails when its context is done.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// errorKeeper remembers why reading failed: a program that it feeds only says
// that its input ended too early.
type errorKeeper struct {
	r      io.Reader
	err    error
	failed func(error) // called with it; nil means no call
}

func (k *errorKeeper) Read(p []byte) (int, error) {
	n, err := k.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		k.err = err
		if k.failed != nil {
			k.failed(err)
		}
	}
	return n, err
}

package zfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"

	"sidus/image/store"
)

var _ store.Resumer = (*Store)(nil)

// ReceiveResumable implements store.Resumer by "zfs receive -s".
func (s *Store) ReceiveResumable(ctx context.Context, kind string, r io.Reader, snap, base store.SnapshotID) error {
	return s.receive(ctx, kind, r, snap, base, true)
}

// ResumeToken implements store.Resumer: it is the property
// receive_resume_token.
func (s *Store) ResumeToken(ctx context.Context, snap store.SnapshotID) (string, error) {
	partial, err := s.partial(snap)
	if err != nil {
		return "", err
	}
	found, err := s.opts.properties(ctx, partial, "receive_resume_token")
	if err != nil {
		return "", classify(partial, partial, err)
	}
	if token := found["receive_resume_token"].value; tokenForm.MatchString(token) {
		return token, nil
	}
	return "", fmt.Errorf("%v: %w: nothing was kept that could be gone on with", partial, store.ErrNotFound)
}

// resumable tells whether there is something to go on with.
func (s *Store) resumable(ctx context.Context, partial dataset) bool {
	found, err := s.opts.properties(ctx, partial, "receive_resume_token")
	return err == nil && tokenForm.MatchString(found["receive_resume_token"].value)
}

// tokenForm is what a token looks like (zfs_send_resume_token_to_nvlist): a
// version, a checksum, a length, and the rest in hexadecimal digits.
var tokenForm = regexp.MustCompile(`^1-[0-9a-f]{1,16}-[0-9a-f]{1,8}-[0-9a-f]+$`)

// maxToken is the longest token, in bytes.
const maxToken = 8 << 10

// Lines of "zfs send -n -v -t".
var (
	tokenTo   = regexp.MustCompile(`(?m)^\s+toguid = 0x([0-9a-f]+)$`)
	tokenFrom = regexp.MustCompile(`(?m)^\s+fromguid = 0x([0-9a-f]+)$`)
)

// errToken is wrapped with store.ErrNotFound.
var errToken = errors.New("the token is not of this snapshot and base: send it from the start")

// SendResumed implements store.Resumer by "zfs send -t". The token comes from
// another server: what it names is compared with what was asked for.
func (s *Store) SendResumed(ctx context.Context, snap, base store.SnapshotID, token string) (_ io.ReadCloser, err error) {
	if len(token) > maxToken || !tokenForm.MatchString(token) {
		return nil, fmt.Errorf("snapshot %s: resume token: %w", snap, store.ErrBadName)
	}
	r := &sender{store: s, snap: snap}
	defer func() {
		if err != nil {
			r.release()
		}
	}()
	d, found, err := s.use(ctx, r, snap)
	if err != nil {
		return nil, err
	}
	names, want := []dataset{d}, [2]string{found["guid"].value, "0"}
	if base != "" {
		if d, found, err = s.use(ctx, r, base); err != nil {
			return nil, err
		}
		names, want[1] = append(names, d), found["guid"].value
	}
	text, err := s.opts.output(ctx, "zfs", "send", "-n", "-v", "-t", token)
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w: %w: %w", snap, store.ErrNotFound, errToken, err)
	}
	if tokenGUIDs(text) != want {
		return nil, fmt.Errorf("snapshot %s: %w: %w", snap, store.ErrNotFound, errToken)
	}
	if r.hold, err = s.holdAll(ctx, names); err != nil {
		return nil, err
	}
	return r, r.start(ctx, []string{"send", "-t", token})
}

// tokenGUIDs reads the GUIDs of a token's snapshot and base, in decimal digits;
// "0" for a base that there is none of.
func tokenGUIDs(text []byte) (guids [2]string) {
	guids[1] = "0"
	for n, form := range []*regexp.Regexp{tokenTo, tokenFrom} {
		if m := form.FindSubmatch(text); m != nil {
			if value, err := strconv.ParseUint(string(m[1]), 16, 64); err == nil {
				guids[n] = strconv.FormatUint(value, 10)
			}
		}
	}
	return guids
}

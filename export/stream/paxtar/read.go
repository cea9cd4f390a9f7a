package paxtar

import (
	"context"
	"io"

	"github.com/sirupsen/logrus"

	"sidus/image/tool"
)

// Unpack unpacks the archive that r yields into the empty directory root, by
// means of tar(1). GNU tar keeps what it unpacks inside of root: it takes
// leading slashes and ".." off names, and makes symbolic links that point
// outside last. What follows the archive's end is not read. The error of a
// failed Read is among those that are returned.
func Unpack(ctx context.Context, r io.Reader, root string, log logrus.FieldLogger) error {
	return tool.Run(ctx, tool.Options{Stdin: r, Log: log}, "tar", "-x", "-f", "-", "-C", root,
		"--preserve-permissions", "--numeric-owner", "--same-owner", "--acls", "--xattrs", "--xattrs-include=*",
		"--delay-directory-restore", "--warning=no-timestamp", "--no-wildcards")
}

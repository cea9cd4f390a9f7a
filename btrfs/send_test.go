package btrfs

import (
	"testing"

	"sidus/image/store/storetest"
)

func TestNative(t *testing.T) { storetest.RunNative(t, newBackend) }

package nfs

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"sidus/image/index"
)

// TestSmallFiles fills the memory for small files many times over: what is
// found is always right, and what is asked for again and again stays.
func TestSmallFiles(t *testing.T) {
	var c smallFiles
	c.init(16 * 2 * 64 << 10)
	defer c.free()
	content := func(id index.ID) []byte { return bytes.Repeat([]byte{byte(id), byte(id >> 8), 7}, int(id)%5000+1) }
	random := rand.New(rand.NewPCG(1, 2))
	const favourite = 4711
	found, missed := 0, 0
	for range 100_000 {
		id := index.ID(random.IntN(20_000))
		if random.IntN(10) == 0 {
			id = favourite
		}
		want := content(id)
		from := random.IntN(len(want))
		dst := make([]byte, random.IntN(len(want)-from)+1)
		key := smallKey{uint64(1 + id%3), id}
		if !c.read(key, dst, int64(from)) {
			c.put(key, want)
			if missed++; id == favourite {
				t.Logf("missed the favourite")
			}
			continue
		}
		found++
		if !bytes.Equal(dst, want[from:][:len(dst)]) {
			t.Fatalf("file %d from %d: wrong data", id, from)
		}
	}
	if found < 10_000 || missed < 10_000 {
		t.Errorf("%d found, %d missed", found, missed)
	}
	c.put(smallKey{1, 1}, make([]byte, 65<<10))
	if c.read(smallKey{1, 1}, make([]byte, 1), 0) {
		t.Error("a file that is too large is kept")
	}
}

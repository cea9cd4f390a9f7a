package image

import "testing"

func TestCommonAncestor(t *testing.T) {
	b := newBench(t)
	_, s := b.tree("debian", 3)
	_, err := b.Branch(t.Context(), s[1].ID, "gpu")
	b.must(err)
	gpu := b.snapshot("gpu")
	_, other := b.tree("other", 1)
	for _, test := range []struct {
		a, b Snapshot
		want string
	}{
		{s[0], s[2], "debian@1"},
		{s[2], s[0], "debian@1"},
		{s[2], gpu, "debian@2"},
		{gpu, gpu, "gpu@1"},
		{s[2], other[0], ""},
		{Snapshot{}, s[0], ""},
	} {
		got, found, err := b.CommonAncestor(t.Context(), test.a.ID, test.b.ID)
		if err != nil || found != (test.want != "") || found && got.Ref() != test.want {
			t.Errorf("%s and %s: %s, %v, %v; want %q", test.a.ID, test.b.ID, got.Ref(), found, err, test.want)
		}
	}
	// A deleted one is an ancestor, too.
	b.must(b.DeleteTree(t.Context(), "gpu", false))
	b.must(b.DeleteSnapshot(t.Context(), s[1].ID))
	if got, found, err := b.CommonAncestor(t.Context(), s[2].ID, gpu.ID); err != nil || !found || got.Ref() != "debian@2" {
		t.Errorf("%s, %v, %v", got.Ref(), found, err)
	}
}

package liveupdate

import "sidus/tests/lab/labtest"

// prepare makes the tree that the machine boots. To build it takes longer than
// all the rest, so it is kept as a stream.
func (s *site) prepare() {
	s.t.Helper()
	const recipe = "testdata/live.yaml"
	stream, built := labtest.TreeStream(s.t, "live", s.must("build", recipe, "--plan", "--json"), func(path string) {
		s.must("build", recipe)
		s.must("exec", tree, "--", "apt-get", "update", "-qq")
		s.must("snapshot", tree)
		s.must("export", tree+"@latest", "-o", path, "--replace")
	})
	if !built {
		s.must("import", "--stream", stream)
	}
}

// Package storetest is the conformance suite of storage backends. A backend's
// own test is two lines:
//
//	func TestStore(t *testing.T)       { storetest.Run(t, newBackend) }
//	func BenchmarkStore(b *testing.B)  { storetest.Benchmark(b, newBackend) }
//
// What a tree is expected to be comes from find, stat, getfattr, getfacl and
// sha256sum, run on the source: see Describe. Trees are written by Appliers.
// Both also serve tests that look at a snapshot through a served protocol:
// write a tree with AllMetadata, describe it, and describe what the client
// sees with the Fields that the protocol can carry.
package storetest

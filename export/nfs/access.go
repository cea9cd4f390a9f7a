package nfs

import "sidus/image/index"

// Permission bits, as in a mode.
const (
	permRead = 4
	permExec = 1
)

// may reports whether the caller is allowed everything in want on an inode,
// as a local file system would decide (acl(5)). The superuser may read
// everything, search every directory, and execute what anybody may execute.
func (c *credentials) may(x *index.Index, a *index.Attr, want uint32) bool {
	if c.uid == 0 {
		return want&permExec == 0 || a.IsDir() || a.Mode&0o111 != 0
	}
	if c.uid == a.UID {
		return a.Mode>>6&want == want
	}
	if a.HasACL {
		return c.mayByACL(x.ACL(a), a, want)
	}
	if c.inGroup(a.GID) {
		return a.Mode>>3&want == want
	}
	return a.Mode&want == want
}

// mayByACL is the algorithm of acl(5), "ACCESS CHECK ALGORITHM", for a caller
// who is not the owner.
func (c *credentials) mayByACL(acl index.ACL, a *index.Attr, want uint32) bool {
	mask := uint32(7)
	for i := range acl.Len() {
		if e := acl.At(i); e.Tag == index.ACLMask {
			mask = uint32(e.Perm)
		}
	}
	member := false
	for i := range acl.Len() {
		e := acl.At(i)
		perm := uint32(e.Perm)
		switch e.Tag {
		case index.ACLUser:
			if e.ID == c.uid {
				return perm&mask&want == want
			}
		case index.ACLGroupObj, index.ACLGroup:
			gid := e.ID
			if e.Tag == index.ACLGroupObj {
				gid = a.GID
			}
			if c.inGroup(gid) {
				if perm&mask&want == want {
					return true
				}
				member = true
			}
		case index.ACLOther:
			return !member && perm&want == want
		}
	}
	return false
}

// mayReadFile reports whether the caller may READ a file. A client that runs
// a program reads it without read permission, and an owner may have opened
// the file before he took his permission away (RFC 1813, section 4.4).
func (c *credentials) mayReadFile(x *index.Index, a *index.Attr) bool {
	return c.uid == a.UID || c.may(x, a, permRead) || c.may(x, a, permExec)
}

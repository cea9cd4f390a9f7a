// Package hangfs mounts a file system that does not answer, for tests: whoever
// asks it anything hangs in the kernel, where no signal reaches him.
package hangfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// FS is the server of such a file system (FUSE, see linux/fuse.h).
type FS struct {
	device int
	asked  chan struct{}
	stop   chan struct{}
	ended  chan struct{}
}

// Mount mounts one on a folder. It takes root. device is a block device: to
// unmount a file system on one hangs, too; "" mounts one without.
func Mount(folder, device string) (*FS, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/fuse", Err: err}
	}
	kind, options := "fuse", ""
	if device != "" {
		kind, options = "fuseblk", ",blksize=4096"
	} else {
		device = "hangs"
	}
	options = fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0%s", fd, options)
	if err := unix.Mount(device, folder, kind, 0, options); err != nil {
		return nil, errors.Join(&os.PathError{Op: "mount", Path: folder, Err: err}, unix.Close(fd))
	}
	fs := &FS{device: fd, asked: make(chan struct{}, 1), stop: make(chan struct{}), ended: make(chan struct{})}
	if err := fs.begin(); err != nil {
		return nil, errors.Join(err, unix.Unmount(folder, unix.MNT_DETACH), unix.Close(fd))
	}
	go fs.listen()
	return fs, nil
}

// begin answers the first message, which asks for the version.
func (fs *FS) begin() error {
	const headerLen, major, minor = 16, 7, 31
	message := make([]byte, 1<<16)
	n, err := unix.Read(fs.device, message)
	if err != nil || n < headerLen {
		return fmt.Errorf("the first message: %d bytes, %w", n, err)
	}
	order := binary.NativeEndian
	answer := make([]byte, headerLen+64)
	order.PutUint32(answer, uint32(len(answer)))
	copy(answer[8:headerLen], message[8:]) // whose answer it is
	order.PutUint32(answer[headerLen:], major)
	order.PutUint32(answer[headerLen+4:], minor)
	order.PutUint32(answer[headerLen+20:], 4096) // max_write
	_, err = unix.Write(fs.device, answer)
	return err
}

// listen takes messages: who sent one that was taken cannot be interrupted.
func (fs *FS) listen() {
	defer close(fs.ended)
	message := make([]byte, 1<<16)
	for {
		select {
		case <-fs.stop:
			return
		default:
		}
		const pause = 20 // milliseconds
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fs.device), Events: unix.POLLIN}}, pause)
		if n == 0 || errors.Is(err, unix.EINTR) {
			continue
		}
		if _, err := unix.Read(fs.device, message); err != nil && !errors.Is(err, unix.EINTR) {
			return // it is unmounted
		}
		select {
		case fs.asked <- struct{}{}:
		default:
		}
	}
}

// Asked yields something when somebody has begun to wait.
func (fs *FS) Asked() <-chan struct{} { return fs.asked }

// Close lets everybody go on who waits, with an error.
func (fs *FS) Close() error {
	close(fs.stop)
	<-fs.ended
	return unix.Close(fs.device)
}

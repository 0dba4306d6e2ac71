package uffd

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Region is a part of the other process's memory, in bytes: where it is there, and what
// of the file it is filled from.
type Region struct {
	Base   uint64 `json:"base_host_virt_addr"`
	Size   uint64 `json:"size"`
	Offset uint64 `json:"offset"`
	Page   uint64 `json:"page_size"`
}

// A guest's memory has one region, or two where there is room for devices in it.
const (
	mostRegions = 16
	mostMessage = 16 << 10
	addressEnd  = 1 << 57 // of any process
)

// ParseRegions reads what Firecracker says of its guest's memory. They are of pages of
// PageSize, apart from each other, and the file, of so many bytes, is filled from its
// beginning to its end: whatever else is said is refused.
func ParseRegions(text []byte, fileSize int64) ([]Region, error) {
	var list []Region
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("regions: %w", err)
	}
	if len(list) == 0 || len(list) > mostRegions {
		return nil, fmt.Errorf("%d regions", len(list))
	}
	end := uint64(0) // in the file
	for _, r := range list {
		switch {
		case r.Page != PageSize:
			return nil, fmt.Errorf("pages of %d bytes", r.Page)
		case r.Base%PageSize != 0 || r.Size%PageSize != 0:
			return nil, fmt.Errorf("the region at %#x of %#x bytes is not of whole pages", r.Base, r.Size)
		case r.Size == 0 || r.Base == 0 || r.Base >= addressEnd || r.Size > addressEnd-r.Base:
			return nil, fmt.Errorf("the region at %#x of %#x bytes is no process's", r.Base, r.Size)
		case r.Offset != end:
			return nil, fmt.Errorf("the region at %#x begins at %#x of the file, and not at %#x", r.Base, r.Offset, end)
		}
		end += r.Size // 16 times 2^57 at most
	}
	if end != uint64(fileSize) {
		return nil, fmt.Errorf("the regions are of %d bytes, the file has %d", end, fileSize)
	}
	byBase := slices.SortedFunc(slices.Values(list), func(a, b Region) int {
		if a.Base < b.Base {
			return -1
		}
		return 1
	})
	for i := range byBase[1:] {
		if byBase[i].Base+byBase[i].Size > byBase[i+1].Base {
			return nil, fmt.Errorf("the regions at %#x and %#x overlap", byBase[i].Base, byBase[i+1].Base)
		}
	}
	return list, nil
}

// Receive reads the one message of a connected socket: the regions and the descriptor.
// isUffd tells whether a descriptor is a userfaultfd; any other is refused.
func Receive(socket int, fileSize int64, isUffd func(fd int) bool) (fd int, regions []Region, err error) {
	text, oob := make([]byte, mostMessage), make([]byte, unix.CmsgSpace(4*16))
	n, oobn, flags, _, err := unix.Recvmsg(socket, text, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, nil, fmt.Errorf("receive the memory's regions: %w", err)
	}
	fds := descriptors(oob[:oobn])
	defer func() {
		for _, f := range fds {
			if f != fd || err != nil {
				unix.Close(f)
			}
		}
	}()
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || len(fds) != 1 {
		return -1, nil, fmt.Errorf("a message with %d descriptors (flags %#x)", len(fds), flags)
	}
	if regions, err = ParseRegions(text[:n], fileSize); err != nil {
		return -1, nil, err
	}
	if !isUffd(fds[0]) {
		return -1, nil, errors.New("the descriptor is no userfaultfd")
	}
	return fds[0], regions, unix.SetNonblock(fds[0], true)
}

// descriptors are those that came with a message.
func descriptors(oob []byte) (fds []int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		if got, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

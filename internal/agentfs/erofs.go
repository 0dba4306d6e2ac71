package agentfs

import (
	"encoding/binary"
	"errors"
	"slices"
)

// Image returns a read-only file system of one directory that holds the
// programs and the empty directories: superblock and inodes in the first block, the
// directories in the next ones, then the programs.
// https://docs.kernel.org/filesystems/erofs.html
func Image(uuid [16]byte, programs map[string][]byte, dirs []string) ([]byte, error) {
	const (
		block, slot       = 4096, 32
		firstInode        = 1152 // behind the superblock
		dirType, regType  = 2, 1
		dirMode, fileMode = 0o40555, 0o100555
	)
	names := slices.Clone(dirs)
	for n := range programs {
		names = append(names, n)
	}
	slices.Sort(names)
	if firstInode+slot*(len(names)+1) > block {
		return nil, errors.New("too many files")
	}
	le := binary.LittleEndian
	img := make([]byte, (2+len(dirs))*block)
	nid := func(i int) uint64 { return uint64(firstInode/slot + i) }
	inode := func(i int, mode uint16, size int, blk uint32) {
		b := img[nid(i)*slot:]
		nlink := uint16(1)
		if mode == dirMode {
			nlink = 2
		}
		le.PutUint16(b[4:], mode)
		le.PutUint16(b[6:], nlink)
		le.PutUint32(b[8:], uint32(size))
		le.PutUint32(b[16:], blk)
		le.PutUint32(b[20:], uint32(i+1))
	}
	// directory writes entries, which must be sorted, to a block.
	type entry struct {
		name string
		nid  uint64
		kind byte
	}
	directory := func(blk int, entries []entry) (size int) {
		b := img[blk*block : (blk+1)*block]
		size = 12 * len(entries)
		for i, e := range entries {
			le.PutUint64(b[12*i:], e.nid)
			le.PutUint16(b[12*i+8:], uint16(size))
			b[12*i+10] = e.kind
			size += copy(b[size:], e.name)
		}
		return size
	}
	root := []entry{{".", nid(0), dirType}, {"..", nid(0), dirType}}
	nextDir := 2
	for i, name := range names {
		own := nid(i + 1)
		if content, ok := programs[name]; ok {
			inode(i+1, fileMode, len(content), uint32(len(img)/block))
			img = append(img, content...)
			img = append(img, make([]byte, -len(img)&(block-1))...)
			root = append(root, entry{name, own, regType})
			continue
		}
		inode(i+1, dirMode, directory(nextDir, []entry{{".", own, dirType}, {"..", nid(0), dirType}}), uint32(nextDir))
		root = append(root, entry{name, own, dirType})
		nextDir++
	}
	inode(0, dirMode, directory(1, root), 1)

	sb := img[1024:]
	le.PutUint32(sb, 0xe0f5e1e2)
	sb[12] = 12 // log2 of the block's size
	le.PutUint16(sb[14:], uint16(nid(0)))
	le.PutUint64(sb[16:], uint64(len(names)+1))
	le.PutUint32(sb[36:], uint32(len(img)/block))
	copy(sb[48:64], uuid[:])
	return img, nil
}

package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"

	"github.com/nacrehq/nacre"
)

// The superblock lies 1024 bytes into the image (Linux, fs/erofs/erofs_fs.h).
const (
	superOffset    = 1024
	superSize      = 128
	superMagic     = 0xe0f5e1e2
	superChecksum  = 1 // of the compatible features
	minBlockBits   = 12
	maxBlockBits   = 16
	offChecksum    = 4
	offCompat      = 8
	offBlockBits   = 12
	offBlocks      = 36
	offIncompat    = 80
	maxImageBlocks = 1 << 31
)

// checkEROFS tells whether the file is an EROFS image that is all there and that
// gVisor can mount: no compression and no other feature that changes the layout,
// blocks of 4 KiB or more. A bit that flipped in the first block shows; one
// in the content shows in the image's hash only.
func checkEROFS(f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	var sb [superSize]byte
	if _, err := f.ReadAt(sb[:], superOffset); err != nil {
		return errors.New("not an EROFS image: too short")
	}
	if binary.LittleEndian.Uint32(sb[:]) != superMagic {
		return errors.New("not an EROFS image: no superblock")
	}
	bits := sb[offBlockBits]
	if bits < minBlockBits || bits > maxBlockBits {
		return fmt.Errorf("blocks of 2^%d bytes are not supported; use mkfs.erofs -b 4096", bits)
	}
	if n := binary.LittleEndian.Uint32(sb[offIncompat:]); n != 0 {
		return fmt.Errorf("the image needs features %#x; make it without compression, chunks and extra devices", n)
	}
	blocks := int64(binary.LittleEndian.Uint32(sb[offBlocks:]))
	if blocks == 0 || blocks > maxImageBlocks || blocks<<bits > fi.Size() {
		return fmt.Errorf("the image says %d blocks of %d bytes, the file has %d bytes", blocks, 1<<bits, fi.Size())
	}
	if binary.LittleEndian.Uint32(sb[offCompat:])&superChecksum == 0 {
		return nil
	}
	block := make([]byte, 1<<bits-superOffset)
	if _, err := f.ReadAt(block, superOffset); err != nil {
		return err
	}
	want := binary.LittleEndian.Uint32(block[offChecksum:])
	clear(block[offChecksum : offChecksum+4])
	// The kernel's crc32c has no final inversion.
	if got := ^crc32.Checksum(block, crc32.MakeTable(crc32.Castagnoli)); got != want {
		return fmt.Errorf("the superblock's checksum is %#x, not %#x", got, want)
	}
	return nil
}

// checkImport is checkEROFS for a file that somebody hands in.
func checkImport(f *os.File) error {
	if err := checkEROFS(f); err != nil {
		return nacre.Invalidf("image", "the image cannot be used: %v", err)
	}
	return nil
}

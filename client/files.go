package client

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/url"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/agent/envd"
)

// Files are a sandbox's files as one user sees them. Paths are absolute, "~", or
// relative to the user's home. A missing file is ErrNotFound and fs.ErrNotExist,
// a directory where a file is needed, or the reverse, ErrInvalid, a full disk
// ErrNoSpace.
type Files struct {
	sb   *Sandbox
	user string
}

// FileInfo describes a file.
type FileInfo = nacre.FileInfo

// As returns the files as another user sees and owns them.
func (f *Files) As(user string) *Files { return &Files{sb: f.sb, user: user} }

// Open opens a file for reading. The reader ends with io.EOF only after the
// whole of the file.
func (f *Files) Open(ctx context.Context, path string) (io.ReadCloser, error) {
	r, _, err := f.sb.guest.files.Read(ctx, f.user, path)
	if err != nil {
		return nil, fileError(ctx, err)
	}
	return fileReader{ctx, r}, nil
}

// fileReader reports errors as the rest of the package does.
type fileReader struct {
	ctx context.Context
	io.ReadCloser
}

func (r fileReader) Read(b []byte) (int, error) {
	n, err := r.ReadCloser.Read(b)
	if err != nil && err != io.EOF {
		err = fileError(r.ctx, err)
	}
	return n, err
}

// ReadFile reads a whole file.
func (f *Files) ReadFile(ctx context.Context, path string) ([]byte, error) {
	r, err := f.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// Write replaces a file with what r gives, and makes the directories above it.
// Nothing is buffered: a file may be larger than memory. When r or the
// connection fails half-way, the file is left incomplete.
func (f *Files) Write(ctx context.Context, path string, r io.Reader) (FileInfo, error) {
	info, err := f.sb.guest.files.Write(ctx, f.user, path, r)
	return info, fileError(ctx, err)
}

// WriteFile replaces a file with data, and makes the directories above it.
func (f *Files) WriteFile(ctx context.Context, path string, data []byte) error {
	_, err := f.Write(ctx, path, bytes.NewReader(data))
	return err
}

// File is one that WriteMany writes.
type File struct {
	Path string
	Data io.Reader
}

// WriteMany writes files, several at once, and returns them in the order given.
// It stops at the first error; others may have been written by then.
func (f *Files) WriteMany(ctx context.Context, files ...File) ([]FileInfo, error) {
	const atOnce = 4
	out := make([]FileInfo, len(files))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for i, file := range files {
		g.Go(func() (err error) {
			out[i], err = f.Write(ctx, file.Path, file.Data)
			return err
		})
	}
	return out, g.Wait()
}

// List lists a directory, depth levels deep: 1 is the directory's own entries.
// Order is lexical, a directory's entries right after it.
func (f *Files) List(ctx context.Context, path string, depth int) ([]FileInfo, error) {
	list, err := f.sb.guest.files.List(ctx, f.user, path, depth)
	return list, fileError(ctx, err)
}

// Stat describes a file. A symbolic link has its target's type and mode.
func (f *Files) Stat(ctx context.Context, path string) (FileInfo, error) {
	info, err := f.sb.guest.files.Stat(ctx, f.user, path)
	return info, fileError(ctx, err)
}

// Exists tells whether there is a file or a directory.
func (f *Files) Exists(ctx context.Context, path string) (bool, error) {
	_, err := f.Stat(ctx, path)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Rename moves a file or a directory, and makes the directories above its new place.
func (f *Files) Rename(ctx context.Context, from, to string) (FileInfo, error) {
	info, err := f.sb.guest.files.Move(ctx, f.user, from, to)
	return info, fileError(ctx, err)
}

// Remove removes a file, or a directory with all that is in it. What is not
// there is no error.
func (f *Files) Remove(ctx context.Context, path string) error {
	return fileError(ctx, f.sb.guest.files.Remove(ctx, f.user, path))
}

// MakeDir makes a directory and those above it. created is false for one that
// was there already.
func (f *Files) MakeDir(ctx context.Context, path string) (created bool, err error) {
	_, err = f.sb.guest.files.MakeDir(ctx, f.user, path)
	err = fileError(ctx, err)
	if errors.Is(err, ErrConflict) {
		return false, nil
	}
	return err == nil, err
}

// DownloadURL returns an address that a GET without any credential downloads the
// file from, for as long as validFor says; 0 is as long as the sandbox lives.
func (f *Files) DownloadURL(path string, validFor time.Duration) string {
	return f.signedURL(path, envd.OpRead, validFor)
}

// UploadURL returns an address that takes the file from a POST of a multipart
// form with a part named "file". Validity as in DownloadURL.
func (f *Files) UploadURL(path string, validFor time.Duration) string {
	return f.signedURL(path, envd.OpWrite, validFor)
}

func (f *Files) signedURL(path, op string, validFor time.Duration) string {
	query := url.Values{"path": {path}}
	if f.user != "" {
		query.Set("username", f.user)
	}
	if f.sb.token != "" {
		var expires int64
		if validFor != 0 {
			expires = time.Now().Add(validFor).Unix()
			query.Set("signature_expiration", strconv.FormatInt(expires, 10))
		}
		query.Set("signature", envd.Signature(path, op, f.user, f.sb.token, expires))
	}
	return f.sb.guest.base + envd.PathFiles + "?" + query.Encode()
}

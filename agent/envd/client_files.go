package envd

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"

	"connectrpc.com/connect"
	"github.com/nacrehq/nacre"
	pb "github.com/nacrehq/nacre/agent/envd/filesystempb"
)

// files implements nacre.Files.
type files struct{ c *Client }

func fileQuery(user, path string) url.Values {
	q := url.Values{"path": {path}}
	if user != "" {
		q.Set("username", user)
	}
	return q
}

// Read returns size -1 for a file of the kernel's, which has none.
func (f *files) Read(ctx context.Context, user, path string) (io.ReadCloser, int64, error) {
	resp, err := f.c.do(ctx, http.MethodGet, PathFiles, fileQuery(user, path), nil)
	if err != nil {
		return nil, 0, err
	}
	return &content{ctx: ctx, body: resp.Body}, resp.ContentLength, nil
}

// content tells a broken transfer from a finished one.
type content struct {
	ctx  context.Context
	body io.ReadCloser
}

func (c *content) Read(p []byte) (int, error) {
	n, err := c.body.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = badAnswer(c.ctx, err)
	}
	return n, err
}

func (c *content) Close() error { return c.body.Close() }

func (f *files) Write(ctx context.Context, user, path string, r io.Reader) (nacre.FileInfo, error) {
	src := newSource(r)
	resp, err := f.c.do(ctx, http.MethodPost, PathFiles, fileQuery(user, path), src)
	if err != nil {
		if src.err != nil {
			return nacre.FileInfo{}, src.err // r's own failure, not the guest's
		}
		return nacre.FileInfo{}, err
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxBody))
	_ = resp.Body.Close()
	return f.Stat(ctx, user, path)
}

// source remembers why reading the caller's content failed. It is more than a
// bytes.Reader to the HTTP client, so a failed upload is never sent twice.
type source struct {
	r    io.Reader
	size int64 // 0 when it is not known
	err  error
}

// newSource finds out how much there is: what has a length is sent in larger
// steps than what has none, and refused at once when it does not fit the disk.
func newSource(r io.Reader) *source {
	var size int64
	switch r := r.(type) {
	case interface{ Len() int }: // bytes.Reader and its like
		size = int64(r.Len())
	case *os.File:
		fi, err := r.Stat()
		if err == nil && fi.Mode().IsRegular() { // the kernel's files say 0: not known
			at, _ := r.Seek(0, io.SeekCurrent)
			size = max(0, fi.Size()-at)
		}
	}
	if size > 0 {
		r = io.LimitReader(r, size) // a file may grow meanwhile
	}
	return &source{r: r, size: size}
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

func (f *files) Stat(ctx context.Context, user, path string) (nacre.FileInfo, error) {
	resp, err := f.c.files().Stat(asUser(ctx, user), connect.NewRequest(&pb.StatRequest{Path: path}))
	if err != nil {
		return nacre.FileInfo{}, rpcError(ctx, err)
	}
	return fileInfo(resp.Msg.GetEntry()), nil
}

func (f *files) List(ctx context.Context, user, path string, depth int) ([]nacre.FileInfo, error) {
	if depth < 0 {
		return nil, nacre.Invalidf("depth", "depth must not be negative")
	}
	resp, err := f.c.files().ListDir(asUser(ctx, user), connect.NewRequest(&pb.ListDirRequest{Path: path, Depth: uint32(depth)}))
	if err != nil {
		return nil, rpcError(ctx, err)
	}
	out := make([]nacre.FileInfo, 0, len(resp.Msg.GetEntries()))
	for _, e := range resp.Msg.GetEntries() {
		out = append(out, fileInfo(e))
	}
	return out, nil
}

func (f *files) MakeDir(ctx context.Context, user, path string) (nacre.FileInfo, error) {
	resp, err := f.c.files().MakeDir(asUser(ctx, user), connect.NewRequest(&pb.MakeDirRequest{Path: path}))
	if err != nil {
		return nacre.FileInfo{}, rpcError(ctx, err)
	}
	return fileInfo(resp.Msg.GetEntry()), nil
}

func (f *files) Move(ctx context.Context, user, from, to string) (nacre.FileInfo, error) {
	resp, err := f.c.files().Move(asUser(ctx, user), connect.NewRequest(&pb.MoveRequest{Source: from, Destination: to}))
	if err != nil {
		return nacre.FileInfo{}, rpcError(ctx, err)
	}
	return fileInfo(resp.Msg.GetEntry()), nil
}

func (f *files) Remove(ctx context.Context, user, path string) error {
	_, err := f.c.files().Remove(asUser(ctx, user), connect.NewRequest(&pb.RemoveRequest{Path: path}))
	return rpcError(ctx, err)
}

func (f *files) Watch(ctx context.Context, user, path string, recursive bool, ready func(), fn func(nacre.FileEvent) error) error {
	inner, cancel := detach(asUser(ctx, user))
	defer cancel()
	stream, err := f.c.files().WatchDir(inner, connect.NewRequest(&pb.WatchDirRequest{Path: path, Recursive: recursive}))
	if err != nil {
		return rpcError(ctx, err)
	}
	defer func() {
		cancel() // first: closing reads what is left, and there is no end
		_ = stream.Close()
	}()
	for stream.Receive() {
		switch e := stream.Msg().GetEvent().(type) {
		case *pb.WatchDirResponse_Start:
			if ready != nil {
				ready()
				ready = nil
			}
		case *pb.WatchDirResponse_Filesystem:
			op, ok := fileOp(e.Filesystem.GetType())
			if !ok {
				continue
			}
			if err := fn(nacre.FileEvent{Name: e.Filesystem.GetName(), Op: op}); err != nil {
				return err
			}
		}
	}
	err = stream.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF // the guest never ends it
	}
	return rpcError(ctx, err)
}

// asUser also keeps the caller's deadline off the wire: the guest needs none to
// notice that we went away.
func asUser(ctx context.Context, user string) context.Context {
	return withCall(ctx, callHeaders{user: user})
}

func fileOp(t pb.EventType) (nacre.FileOp, bool) {
	switch t {
	case pb.EventType_EVENT_TYPE_CREATE:
		return nacre.FileCreate, true
	case pb.EventType_EVENT_TYPE_WRITE:
		return nacre.FileWrite, true
	case pb.EventType_EVENT_TYPE_REMOVE:
		return nacre.FileRemove, true
	case pb.EventType_EVENT_TYPE_RENAME:
		return nacre.FileRename, true
	case pb.EventType_EVENT_TYPE_CHMOD:
		return nacre.FileChmod, true
	}
	return "", false
}

func fileInfo(e *pb.EntryInfo) nacre.FileInfo {
	return nacre.FileInfo{
		Name: e.GetName(), Path: e.GetPath(),
		Dir:  e.GetType() == pb.FileType_FILE_TYPE_DIRECTORY,
		Size: e.GetSize(), Mode: e.GetMode(), Permissions: e.GetPermissions(),
		Owner: e.GetOwner(), Group: e.GetGroup(),
		ModTime: e.GetModifiedTime().AsTime(), Symlink: e.GetSymlinkTarget(),
	}
}

package agent

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"connectrpc.com/connect"
	"github.com/nacrehq/nacre"
	pb "github.com/nacrehq/nacre/agent/envd/filesystempb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// maxListed bounds one answer of ListDir.
const maxListed = 100_000

// filesystemService is the RPC side of the guest's files. It acts as root, for
// users write below directories that only root may make, and gives what it
// makes to the user.
type filesystemService struct{ a *Agent }

func (s *filesystemService) Stat(_ context.Context, req *connect.Request[pb.StatRequest]) (*connect.Response[pb.StatResponse], error) {
	_, path, err := s.target(req, req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	entry, err := s.a.entry(path)
	if err != nil {
		return nil, rpcError(err)
	}
	return connect.NewResponse(&pb.StatResponse{Entry: entry}), nil
}

func (s *filesystemService) MakeDir(_ context.Context, req *connect.Request[pb.MakeDirRequest]) (*connect.Response[pb.MakeDirResponse], error) {
	acc, path, err := s.target(req, req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	if fi, err := os.Stat(path); err == nil {
		if fi.IsDir() {
			return nil, rpcError(nacre.Errorf(nacre.CodeConflict, "directory already exists: '%s'", validText(path)))
		}
		return nil, rpcError(nacre.Invalidf("path", "path already exists but it is not a directory: '%s'", validText(path)))
	}
	if err := makeParents(path, acc); err != nil {
		return nil, rpcError(err)
	}
	s.a.watchers.sync()
	entry, err := s.a.entry(path)
	if err != nil {
		return nil, rpcError(err)
	}
	return connect.NewResponse(&pb.MakeDirResponse{Entry: entry}), nil
}

func (s *filesystemService) Move(_ context.Context, req *connect.Request[pb.MoveRequest]) (*connect.Response[pb.MoveResponse], error) {
	acc, from, err := s.target(req, req.Msg.GetSource())
	if err == nil && (req.Msg.GetSource() == "" || req.Msg.GetDestination() == "") {
		err = rpcError(nacre.Invalidf("source", "source and destination must not be empty"))
	}
	if err != nil {
		return nil, err
	}
	to, err := s.a.resolve(acc, req.Msg.GetDestination())
	if err != nil {
		return nil, rpcError(err)
	}
	if _, err := os.Lstat(from); err != nil {
		return nil, rpcError(fileError(err, from))
	}
	if err := makeParents(filepath.Dir(to), acc); err != nil {
		return nil, rpcError(err)
	}
	err = os.Rename(from, to)
	if errors.Is(err, syscall.EXDEV) || errors.Is(err, syscall.EBUSY) {
		if refused := mayRemove(from); refused != nil {
			return nil, rpcError(refused)
		}
	}
	if errors.Is(err, syscall.EXDEV) {
		err = moveAcross(from, to)
	}
	if err != nil {
		return nil, rpcError(fileError(err, to))
	}
	entry, err := s.a.entry(to)
	if err != nil {
		return nil, rpcError(err)
	}
	return connect.NewResponse(&pb.MoveResponse{Entry: entry}), nil
}

func (s *filesystemService) Remove(_ context.Context, req *connect.Request[pb.RemoveRequest]) (*connect.Response[pb.RemoveResponse], error) {
	_, path, err := s.target(req, req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	switch {
	case req.Msg.GetPath() == "": // which means the home elsewhere
		return nil, rpcError(nacre.Invalidf("path", "path is missing: it says what to remove"))
	case path == "/":
		return nil, rpcError(nacre.Invalidf("path", "the root directory cannot be removed"))
	}
	if err := mayRemove(path); err != nil {
		return nil, rpcError(err)
	}
	if err := os.RemoveAll(path); err != nil && !errors.Is(err, syscall.ENOTDIR) {
		return nil, rpcError(fileError(err, path))
	}
	return connect.NewResponse(&pb.RemoveResponse{}), nil
}

func (s *filesystemService) ListDir(ctx context.Context, req *connect.Request[pb.ListDirRequest]) (*connect.Response[pb.ListDirResponse], error) {
	_, path, err := s.target(req, req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	if err := isDir(path); err != nil {
		return nil, rpcError(err)
	}
	l := &lister{a: s.a, ctx: ctx}
	if err := l.walk(path, max(1, int(req.Msg.GetDepth()))); err != nil {
		return nil, rpcError(err)
	}
	return connect.NewResponse(&pb.ListDirResponse{Entries: l.entries}), nil
}

// target resolves the path of a request for its user.
func (s *filesystemService) target(req connect.AnyRequest, path string) (account, string, error) {
	acc, err := s.a.rpcUser(req.Header())
	if err != nil {
		return account{}, "", err
	}
	abs, err := s.a.resolve(acc, path)
	return acc, abs, rpcError(err)
}

// isDir is nil for a directory, also through symlinks.
func isDir(path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return fileError(err, path)
	}
	if !fi.IsDir() {
		return nacre.Invalidf("path", "path is not a directory: '%s'", validText(path))
	}
	return nil
}

// lister collects a tree depth first, in lexical order.
type lister struct {
	a       *Agent
	ctx     context.Context
	entries []*pb.EntryInfo
	named   int // names read so far
}

func (l *lister) walk(dir string, depth int) error {
	names, err := l.names(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := l.ctx.Err(); err != nil {
			return nacre.Wrap(nacre.CodeDeadline, err, "the directory could not be listed in time")
		}
		path := filepath.Join(dir, name)
		entry, err := l.a.entry(path)
		if nacre.IsCode(err, nacre.CodeNotFound) {
			continue // it went away meanwhile
		}
		if err != nil {
			return err
		}
		l.entries = append(l.entries, entry)
		if depth > 1 && entry.GetType() == pb.FileType_FILE_TYPE_DIRECTORY && entry.SymlinkTarget == nil {
			if err := l.walk(path, depth-1); err != nil && !nacre.IsCode(err, nacre.CodeNotFound) {
				return err
			}
		}
	}
	return nil
}

func (l *lister) names(dir string) ([]string, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fileError(err, dir)
	}
	defer func() { _ = f.Close() }()
	var names []string
	for {
		some, err := f.Readdirnames(1024)
		names = append(names, some...)
		if l.named += len(some); l.named > maxListed {
			return nil, nacre.Errorf(nacre.CodeExhausted, "more than %d entries: list a smaller part, or with a smaller depth", maxListed)
		}
		if errors.Is(err, io.EOF) {
			slices.Sort(names)
			return names, nil
		}
		if err != nil {
			return nil, fileError(err, dir)
		}
	}
}

// entry describes a path. A symlink has the type and mode of its target, and
// its own name, size and permissions.
func (a *Agent) entry(path string) (*pb.EntryInfo, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, fileError(err, path)
	}
	e := &pb.EntryInfo{
		Name:         validText(fi.Name()),
		Path:         validText(path),
		Size:         fi.Size(),
		Type:         fileType(fi.Mode()),
		Mode:         uint32(fi.Mode().Perm()),
		Permissions:  fi.Mode().String(),
		ModifiedTime: timestamppb.New(fi.ModTime()),
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		e.Owner, e.Group = a.users.userName(st.Uid), a.users.groupName(st.Gid)
	}
	if fi.Mode()&fs.ModeSymlink != 0 {
		target := linkTarget(path)
		text := validText(target)
		e.SymlinkTarget = &text
		e.Type, e.Mode = pb.FileType_FILE_TYPE_UNSPECIFIED, 0
		if ti, err := os.Stat(path); err == nil {
			e.Type, e.Mode = fileType(ti.Mode()), uint32(ti.Mode().Perm())
		}
	}
	return e, nil
}

// linkTarget is where a symlink leads in the end or, for a dangling one, what it says.
func linkTarget(path string) string {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		return target
	}
	text, err := os.Readlink(path)
	if err != nil {
		return path
	}
	if !filepath.IsAbs(text) {
		text = filepath.Join(filepath.Dir(path), text)
	}
	return text
}

func fileType(m fs.FileMode) pb.FileType {
	switch {
	case m.IsRegular():
		return pb.FileType_FILE_TYPE_FILE
	case m.IsDir():
		return pb.FileType_FILE_TYPE_DIRECTORY
	}
	return pb.FileType_FILE_TYPE_UNSPECIFIED // clients know no other
}

package nacre

import (
	"context"
	"io"
	"maps"
	"time"
)

// Agent is the daemon inside a guest, as seen from the host. Every call is one
// exchange with the guest and ends with its context. A guest that does not
// answer is CodeUnavailable. User "" is the template's default user.
type Agent interface {
	// Init tells a guest who it is. It may be repeated: the environment is
	// replaced, the clock set, entropy mixed in. Until the first Init every other
	// call but Healthy is CodeUnauthenticated.
	Init(ctx context.Context, in AgentInit) error
	// Healthy returns nil when the agent answers.
	Healthy(ctx context.Context) error
	// Stats reads what only the guest knows: its disk and its page cache.
	Stats(ctx context.Context) (GuestStats, error)
	// Logs streams the guest's log from the cursor on, old entries first, and goes
	// on with new ones until ctx ends or fn returns an error. The guest keeps a
	// bounded tail (1 MiB): a gap is told by the next entry's Seq.
	Logs(ctx context.Context, after int64, fn func(LogEntry) error) error
	// LogsSoFar is Logs that ends with nil after the entries that there are.
	LogsSoFar(ctx context.Context, after int64, fn func(LogEntry) error) error
	Processes() Processes
	Files() Files
}

// AgentInit is what a guest is told before anyone may use it, at its start and
// after each restore.
type AgentInit struct {
	Hostname    string
	Env         map[string]string
	AccessToken string // "" opens the agent to whoever reaches it; the edge still guards
	HostToken   string // demanded of every host-only call after the first Init
	Time        time.Time
	Entropy     []byte // 32 to 512 bytes, never used twice; none for a guest that has got some since it began
	DNS         string // address for /etc/resolv.conf
	DefaultUser string // "" means "user"
	DefaultCwd  string // "" means the user's home
	// NewIdentity is for a guest that is new, or was restored as another sandbox: it
	// gets its own /etc/machine-id, and its log begins here.
	NewIdentity bool
}

// GuestStats are the guest's own figures.
type GuestStats struct {
	CPUCount                    int
	CPUUsedPct                  float64
	MemTotal, MemUsed, MemCache int64
	DiskUsed, DiskTotal         int64
	At                          time.Time
}

// LogEntry is one line of a sandbox's log.
type LogEntry struct {
	Seq     int64             `json:"seq"` // grows by one within one machine
	Time    time.Time         `json:"time"`
	Type    LogType           `json:"type"`
	Message string            `json:"message"`
	Fields  map[string]string `json:"fields,omitempty"`
}

// LogType names what an entry is.
type LogType string

const (
	LogStdout       LogType = "stdout"
	LogStderr       LogType = "stderr"
	LogProcessStart LogType = "process_start" // Fields: pid, command, tag
	LogProcessEnd   LogType = "process_end"   // Fields: pid, process_result {"exit_code","error"}
)

// Processes starts and follows processes in a guest.
type Processes interface {
	// Start runs a program and returns when it has a pid. Unknown user:
	// CodeUnauthenticated; missing cwd: CodeInvalid, of the field process.cwd; missing
	// program: CodeNotFound.
	Start(ctx context.Context, spec ProcessSpec) (ProcessStream, error)
	// Connect follows a running process from now on. Unknown pid: CodeNotFound.
	Connect(ctx context.Context, pid int) (ProcessStream, error)
	// ConnectAfter follows a process that was started with Kept, from where somebody
	// stopped to read. Its first event has Kept. Unknown pid: CodeNotFound.
	ConnectAfter(ctx context.Context, pid int, seen OutputSeen) (ProcessStream, error)
	List(ctx context.Context) ([]ProcessInfo, error)
	// Signal sends SIGTERM (15) or SIGKILL (9) to the process and its group.
	Signal(ctx context.Context, pid int, signal int) error
	// Input writes to the process's stdin or terminal.
	Input(ctx context.Context, pid int, data []byte) error
	CloseInput(ctx context.Context, pid int) error
	Resize(ctx context.Context, pid int, size TermSize) error
}

// ProcessSpec is a program to run.
type ProcessSpec struct {
	Cmd     string
	Args    []string
	Env     map[string]string
	Cwd     string
	User    string
	Tag     string
	Stdin   bool          // keep stdin open for Input; else /dev/null
	Term    *TermSize     // run on a terminal of this size
	Timeout time.Duration // 0 = none; afterwards it is killed

	// Unlogged keeps the process out of the guest's log: it is the host's own
	// affair. From who does not have the host token it is not heard.
	Unlogged bool
	// Kept has the guest keep the newest output (up to 256 KiB, of many processes less)
	// for ConnectAfter. The host's alone, as Unlogged is.
	Kept bool
}

// Of the base image: whose commands and files are, and what puts the Python
// environment of theirs on the PATH of a bash that reads it.
const (
	GuestUser    = "sandbox"
	guestProfile = "/etc/profile.d/venv.sh"
)

// Shell is the program that runs a command line. What env sets wins.
func Shell(line string, env map[string]string) ProcessSpec {
	full := map[string]string{"BASH_ENV": guestProfile}
	maps.Copy(full, env)
	return ProcessSpec{Cmd: "/bin/bash", Args: []string{"-c", line}, Env: full}
}

// TermSize is in characters.
type TermSize struct{ Cols, Rows int }

// ProcessInfo describes a running process.
type ProcessInfo struct {
	PID  int
	Cmd  string
	Args []string
	Env  map[string]string
	Cwd  string
	Tag  string
}

// ProcessStream follows one process. Not for use by several at once: a Next that waits
// is ended by the context that the stream was made with, not by Close. Reading slowly
// slows the process down. That context's end and Close leave the process running.
type ProcessStream interface {
	PID() int
	// Next returns the next event; after the one with Exit, io.EOF. A process
	// that outlived its Timeout ends with CodeDeadline, a guest that went away
	// with CodeUnavailable.
	Next() (ProcessEvent, error)
	Close() error
}

// ProcessEvent has one of its fields set.
type ProcessEvent struct {
	Stdout, Stderr, Term []byte
	Exit                 *ProcessExit
	Kept                 *KeptOutput // of ConnectAfter
}

// OutputSeen is how many bytes of each output of a process were read.
type OutputSeen struct{ Stdout, Stderr, Term int64 }

// KeptOutput tells what ConnectAfter has: it begins at From, which is beyond what was
// seen where the guest kept less, and had come to To already. With None the guest kept
// nothing, and nobody knows what is missing.
type KeptOutput struct {
	From, To OutputSeen
	None     bool
}

// ProcessExit says how a process ended. Code is -1 for one ended by a signal.
type ProcessExit struct {
	Code   int
	Exited bool   // by itself
	Status string // "exit status 3", "signal: killed"
	Error  string // as Status, "" on success
}

// Files works on a guest's file system. Paths are absolute, "~", or relative to
// the user's home. Missing: CodeNotFound; of the wrong kind: CodeInvalid; a full
// disk: CodeNoSpace.
type Files interface {
	// Read opens a file. The reader ends with io.EOF only when all of it came.
	Read(ctx context.Context, user, path string) (io.ReadCloser, int64, error)
	// Write replaces a file with what r gives, making parents.
	Write(ctx context.Context, user, path string, r io.Reader) (FileInfo, error)
	Stat(ctx context.Context, user, path string) (FileInfo, error)
	// List goes depth levels deep (1 = the directory's own entries), in lexical order.
	List(ctx context.Context, user, path string, depth int) ([]FileInfo, error)
	// MakeDir makes parents too. An existing directory is CodeConflict.
	MakeDir(ctx context.Context, user, path string) (FileInfo, error)
	Move(ctx context.Context, user, from, to string) (FileInfo, error)
	// Remove is recursive; a missing path is no error.
	Remove(ctx context.Context, user, path string) error
	// Watch calls fn for each change below path until ctx ends or fn fails.
	// ready is called once when changes from then on will be seen.
	Watch(ctx context.Context, user, path string, recursive bool, ready func(), fn func(FileEvent) error) error
}

// FileInfo describes a file in a guest.
type FileInfo struct {
	Name, Path   string
	Dir          bool
	Size         int64
	Mode         uint32 // permission bits
	Permissions  string // "-rw-r--r--"
	Owner, Group string
	ModTime      time.Time
	Symlink      string // its target, "" for anything else
}

// FileEvent is a change in a watched directory; Name is relative to it.
type FileEvent struct {
	Name string
	Op   FileOp
}

// FileOp names a change.
type FileOp string

const (
	FileCreate FileOp = "create"
	FileWrite  FileOp = "write"
	FileRemove FileOp = "remove"
	FileRename FileOp = "rename"
	FileChmod  FileOp = "chmod"
)

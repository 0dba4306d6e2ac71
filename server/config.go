package server

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/spf13/pflag"
)

// Config is everything that can be set. Each field is a flag ("--data-dir"), an
// environment variable ("NACRE_DATA_DIR") and a key of the configuration file
// ("data_dir"); the flag wins over the variable, the variable over the file.
type Config struct {
	DataDir    string
	ConfigFile string

	HTTP    string
	HTTPS   string
	Domain  string
	TLSCert string
	TLSKey  string

	Runtime            string
	TemplateRuntime    []string
	TemplatePages      []string
	Store              string
	Blobs              string
	CacheDir           string
	BaseImage          string
	Install            bool
	Standby            int
	Warm               bool
	CPUs               int
	MemoryMiB          int
	DiskMiB            int
	MaxPIDs            int
	MaxSandboxes       int
	PerTeam            int
	PausedPerTeam      int
	SnapshotMiBPerTeam int64
	PlainMiB           int64
	LowWaterMiB        int64
	Overcommit         float64
	ReserveMiB         int
	MaxTimeout         time.Duration
	BootTimeout        time.Duration
	Retention          time.Duration

	NetworkPool  string
	SlotsReady   int
	AllowPrivate []string

	PriceVCPU   float64
	PriceMemory float64
	PriceDisk   float64
	Credits     float64

	LogLevel string
	LogJSON  bool
}

// Flags declares every setting on fs with its default and its meaning. It is the
// only place where they are listed: the file and the variables follow from it.
func (c *Config) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&c.DataDir, "data-dir", DefaultDataDir(), "directory of all state: records, keys, machines, images")
	fs.StringVar(&c.ConfigFile, "config", "", "configuration file (default DATA-DIR/nacre.toml when there is one)")
	fs.StringVar(&c.HTTP, "http", "127.0.0.1:3000", "address of the plain HTTP listener; \"\" for none")
	fs.StringVar(&c.HTTPS, "https", "127.0.0.1:8443", "address of the HTTPS listener; \"\" for none")
	fs.StringVar(&c.Domain, "domain", "nacre.localhost", "sandboxes answer at <port>-<id>.DOMAIN, the API at api.DOMAIN")
	fs.StringVar(&c.TLSCert, "tls-cert", "", "certificate for *.DOMAIN in PEM (default: a local authority makes one)")
	fs.StringVar(&c.TLSKey, "tls-key", "", "private key of --tls-cert in PEM")

	fs.StringVar(&c.Runtime, "runtime", "auto", "what machines are made of: gvisor, firecracker, both with a comma and the default first, or auto")
	fs.StringSliceVar(&c.TemplateRuntime, "template-runtime", nil, "what sandboxes of built-in templates are made of when they do not say: TEMPLATE=RUNTIME, comma separated")
	fs.StringSliceVar(&c.TemplatePages, "template-pages", nil, "memory of built-in templates' sandboxes in large pages, of microVMs alone: TEMPLATE=2M, comma separated")
	fs.StringVar(&c.Store, "store", "", "records: sqlite:PATH or postgres://... (default sqlite:DATA-DIR/nacre.db)")
	fs.StringVar(&c.Blobs, "blobs", "", "templates' artifacts: a directory (default DATA-DIR/blobs)")
	fs.StringVar(&c.CacheDir, "cache-dir", defaultCacheDir(), "what is expensive to make and may be deleted: the base image")
	fs.StringVar(&c.BaseImage, "base-image", "", "a ready EROFS image for the base template instead of building one")
	fs.BoolVar(&c.Install, "install", true, "install missing Debian packages with apt-get")
	fs.IntVar(&c.Standby, "standby", -1, "machines kept running ahead for the next create; -1 sizes it to the host")
	fs.BoolVar(&c.Warm, "warm", true, "keep the state behind the start commands of templates; without it their sandboxes boot")
	fs.IntVar(&c.CPUs, "cpus", 2, "virtual processors of a sandbox")
	fs.IntVar(&c.MemoryMiB, "memory-mib", 4096, "memory limit of a sandbox")
	fs.IntVar(&c.DiskMiB, "disk-mib", 10240, "size of a sandbox's writable layer")
	fs.IntVar(&c.MaxPIDs, "max-pids", 4096, "host tasks that one sandbox may have")
	fs.IntVar(&c.MaxSandboxes, "max-sandboxes", 1000, "sandboxes on this host")
	fs.IntVar(&c.PerTeam, "max-sandboxes-per-team", 1000, "sandboxes of one team that are not paused")
	fs.IntVar(&c.PausedPerTeam, "max-paused-per-team", 10000, "paused sandboxes of one team; 0 for any number")
	fs.Int64Var(&c.SnapshotMiBPerTeam, "max-snapshots-mib-per-team", 0, "disk that a team's snapshots and paused sandboxes may occupy; 0 for any")
	fs.Int64Var(&c.PlainMiB, "snapshots-plain-mib", 0, "disk that snapshots' plain files may take; the longest unused beyond it are left as chunks; 0 for any")
	fs.Int64Var(&c.LowWaterMiB, "snapshots-low-water-mib", 0, "free disk below which plain files of snapshots go; 0 means a tenth of it, at most 20480")
	fs.Float64Var(&c.Overcommit, "memory-overcommit", 10, "sum of memory limits over the host's memory")
	fs.IntVar(&c.ReserveMiB, "memory-reserve-mib", 0, "memory that creates leave free; 0 means the larger of 512 and 5 %")
	fs.DurationVar(&c.MaxTimeout, "max-timeout", 24*time.Hour, "longest deadline that a client may ask for")
	fs.DurationVar(&c.BootTimeout, "boot-timeout", 30*time.Second, "longest that a machine may take to boot or to be restored, until its agent answers")
	fs.DurationVar(&c.Retention, "retention", 7*24*time.Hour, "how long records and logs of ended sandboxes are kept")

	fs.StringVar(&c.NetworkPool, "network-pool", "", "IPv4 prefix for the sandboxes' addresses (default: one that is free here)")
	fs.IntVar(&c.SlotsReady, "slots-ready", 16, "network slots made ahead")
	fs.StringSliceVar(&c.AllowPrivate, "allow-private", nil, "private prefixes that sandboxes may reach, comma separated")

	fs.Float64Var(&c.PriceVCPU, "price-vcpu-second", 0, "cents for a second of one virtual processor of a running sandbox")
	fs.Float64Var(&c.PriceMemory, "price-gib-second", 0, "cents for a second of one GiB of memory of a running sandbox")
	fs.Float64Var(&c.PriceDisk, "price-disk-gib-second", 0, "cents for a second of one GiB of disk of a paused sandbox")
	fs.Float64Var(&c.Credits, "credits", 0, "cents that a team's balance begins with; nothing ends when they are spent")

	fs.StringVar(&c.LogLevel, "log-level", "info", "debug, info, warn or error")
	fs.BoolVar(&c.LogJSON, "log-json", false, "log JSON lines")
}

// Load fills what no flag set from NACRE_* and from the configuration file, and
// validates the whole. fs must have been parsed.
func (c *Config) Load(fs *pflag.FlagSet, getenv func(string) string) error {
	given := map[string]bool{}
	fs.Visit(func(f *pflag.Flag) { given[f.Name] = true })
	var bad error
	fromEnv := func(f *pflag.Flag) {
		if v := getenv(envName(f.Name)); v != "" && !given[f.Name] && bad == nil {
			given[f.Name] = true
			if err := fs.Set(f.Name, v); err != nil {
				bad = fmt.Errorf("%s=%q: %w", envName(f.Name), v, err)
			}
		}
	}
	declared := c.declared()
	fs.VisitAll(func(f *pflag.Flag) {
		if declared[f.Name] {
			fromEnv(f)
		}
	})
	if bad != nil {
		return bad
	}
	if err := c.loadFile(fs, declared, given); err != nil {
		return err
	}
	return c.validate()
}

func (c *Config) declared() map[string]bool {
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	new(Config).Flags(all)
	names := map[string]bool{}
	all.VisitAll(func(f *pflag.Flag) { names[f.Name] = true })
	return names
}

func (c *Config) loadFile(fs *pflag.FlagSet, declared, given map[string]bool) error {
	path, must := c.ConfigFile, true
	if path == "" {
		path, must = filepath.Join(c.DataDir, "nacre.toml"), false
	}
	var keys map[string]any
	if _, err := toml.DecodeFile(path, &keys); err != nil {
		if !must && errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("configuration file %s: %w", path, err)
	}
	for key, value := range keys {
		name := strings.ReplaceAll(key, "_", "-")
		if !declared[name] || name == "config" {
			return fmt.Errorf("configuration file %s: %q is no setting; `nacre config` lists them", path, key)
		}
		if given[name] {
			continue
		}
		text := fmt.Sprint(value)
		if list, ok := value.([]any); ok {
			parts := make([]string, len(list))
			for i, v := range list {
				parts[i] = fmt.Sprint(v)
			}
			text = strings.Join(parts, ",")
		}
		if err := fs.Set(name, text); err != nil {
			return fmt.Errorf("configuration file %s: %s = %q: %w", path, key, text, err)
		}
	}
	return nil
}

// ownStore is the database in the data directory, which is this process's alone.
func (c *Config) ownStore() string { return "sqlite:" + filepath.Join(c.DataDir, "nacre.db") }

func (c *Config) validate() error {
	if c.DataDir == "" { // which would mean the working directory
		return errors.New("--data-dir is empty; name a directory, or leave it out for " + DefaultDataDir())
	}
	abs, err := filepath.Abs(c.DataDir)
	if err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	c.DataDir = abs
	if c.Store == "" {
		c.Store = c.ownStore()
	}
	if c.Blobs == "" {
		c.Blobs = filepath.Join(abs, "blobs")
	}
	if c.HTTP == "" && c.HTTPS == "" {
		return errors.New("--http and --https are both empty; at least one is needed")
	}
	for name, addr := range map[string]string{"http": c.HTTP, "https": c.HTTPS} {
		if _, _, err := net.SplitHostPort(addr); addr != "" && err != nil {
			return fmt.Errorf("--%s %q: want HOST:PORT", name, addr)
		}
	}
	if _, err := parseRuntimes(c.Runtime); err != nil {
		return err
	}
	if _, err := parseTemplateRuntimes(c.TemplateRuntime); err != nil {
		return err
	}
	if _, err := parseTemplatePages(c.TemplatePages); err != nil {
		return err
	}
	if c.Domain == "" || strings.ContainsAny(c.Domain, ":/ *") || c.Domain != strings.ToLower(c.Domain) {
		return fmt.Errorf("--domain %q: want a lower-case domain name without a port", c.Domain)
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return errors.New("--tls-cert and --tls-key go together")
	}
	if min(c.PriceVCPU, c.PriceMemory, c.PriceDisk, c.Credits) < 0 {
		return errors.New("--price-vcpu-second, --price-gib-second, --price-disk-gib-second and --credits cannot be negative")
	}
	if min(c.SnapshotMiBPerTeam, c.PlainMiB, c.LowWaterMiB) < 0 {
		return errors.New("--max-snapshots-mib-per-team, --snapshots-plain-mib and --snapshots-low-water-mib cannot be negative")
	}
	if min(c.MaxSandboxes, c.PerTeam, c.PausedPerTeam, c.ReserveMiB, c.SlotsReady) < 0 {
		return errors.New("--max-sandboxes, --max-sandboxes-per-team, --max-paused-per-team, --memory-reserve-mib and --slots-ready cannot be negative")
	}
	if c.Standby < -1 {
		return fmt.Errorf("--standby %d: want a number of machines, or -1 to size it to the host", c.Standby)
	}
	if !(c.Overcommit > 0) { // not a number, too
		return fmt.Errorf("--memory-overcommit %v: want more than 0", c.Overcommit)
	}
	if c.MaxTimeout < time.Second {
		return fmt.Errorf("--max-timeout %v: want a second at least", c.MaxTimeout)
	}
	if c.Retention < 0 {
		return fmt.Errorf("--retention %v cannot be negative", c.Retention)
	}
	if _, err := netip.ParsePrefix(c.NetworkPool); c.NetworkPool != "" && err != nil {
		return fmt.Errorf("--network-pool %q: want an IPv4 network such as 10.231.0.0/16", c.NetworkPool)
	}
	for _, p := range c.AllowPrivate {
		if _, err := netip.ParsePrefix(p); err != nil {
			return fmt.Errorf("--allow-private %q: want a prefix such as 10.1.0.0/16", p)
		}
	}
	if c.BootTimeout < time.Second {
		return fmt.Errorf("--boot-timeout %v: want a second at least", c.BootTimeout)
	}
	if c.CPUs < 1 || c.MemoryMiB < 128 || c.DiskMiB < 64 || c.MaxPIDs < 64 {
		return errors.New("a sandbox needs at least --cpus 1, --memory-mib 128, --disk-mib 64 and --max-pids 64")
	}
	return nil
}

// envName is "NACRE_DATA_DIR" for "data-dir".
func envName(flag string) string {
	return "NACRE_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// Example returns the commented configuration file: every setting with its
// meaning and its default, commented out.
func Example() string {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	fs.SortFlags = false
	new(Config).Flags(fs)
	var b strings.Builder
	b.WriteString("# Nacre's configuration. Every line is optional and shows the default.\n" +
		"# The same names work as flags (--data-dir) and in the environment (NACRE_DATA_DIR).\n")
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Name == "config" || f.Name == "data-dir" {
			return
		}
		value := f.DefValue
		switch f.Value.Type() {
		case "string", "duration":
			value = fmt.Sprintf("%q", value)
		case "stringSlice":
			value = "[]"
		}
		fmt.Fprintf(&b, "\n# %s\n# %s = %s\n", f.Usage, strings.ReplaceAll(f.Name, "-", "_"), value)
	})
	return b.String()
}

// DefaultDataDir is /var/lib/nacre for root and below the home otherwise.
func DefaultDataDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/nacre"
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ".nacre"
	}
	return filepath.Join(home, ".local", "share", "nacre")
}

func defaultCacheDir() string {
	if os.Geteuid() == 0 {
		return "/var/cache/nacre"
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return filepath.Join(os.TempDir(), "nacre-cache")
	}
	return filepath.Join(dir, "nacre")
}

// ensureDir makes a directory that only its owner reads.
func ensureDir(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// pool is what sandboxes' addresses are from; the zero prefix lets the network choose.
func (c *Config) pool() netip.Prefix {
	p, _ := netip.ParsePrefix(c.NetworkPool) // validated by Load
	return p
}

package control

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/nacrehq/nacre"
)

// A node that was full is asked before a record is written, for this long: a storm
// of creates that do not fit leaves no storm of records.
const fullFor = time.Second

// copyRecordAfter is how many times Config.RecordAfter the start of a fork's copy may
// take whose record is written once.
const copyRecordAfter = 25

// Create returns a running sandbox; see nacre.Service.
//
// A create waits for the store once: the record is written while the guest of a
// standby is told who it is, when the machine is there, or, when that takes longer than
// a moment, while it is made. A crash between the two leaves a record without a
// machine, a machine without a record, or one whose guest knows nothing of it, and the
// reconciler ends each.
func (s *Service) Create(ctx context.Context, team nacre.TeamID, r nacre.CreateRequest) (nacre.Sandbox, error) {
	rec, warm, err := s.draft(ctx, team, r)
	if err != nil {
		return nacre.Sandbox{}, err
	}
	if err := s.load(ctx); err != nil {
		return nacre.Sandbox{}, err
	}
	if r.OnTimeout == nacre.TimeoutPause { // it will be, whatever the quota says then
		if err := s.mayKeep(ctx, team, true); err != nil {
			return nacre.Sandbox{}, err
		}
	}
	out, err := s.launch(ctx, rec)
	if err != nil && warm && unusable(err) {
		s.log.Warn("the warm snapshot of a template cannot be used; a sandbox of it boots", "template", rec.TemplateID, "snapshot", rec.Snapshot, "err", err)
		rec.Snapshot = ""
		return s.launch(ctx, s.newborn(rec))
	}
	return out, err
}

// unusable tells a start that failed for want of a good snapshot.
func unusable(err error) bool {
	return nacre.IsCode(err, nacre.CodeNotFound) || nacre.IsCode(err, nacre.CodeUnsupported) || nacre.IsCode(err, nacre.CodeMismatch) || nacre.IsCode(err, nacre.CodeConflict)
}

// launch makes one sandbox of its record, within its team's quota.
func (s *Service) launch(ctx context.Context, rec nacre.Sandbox) (nacre.Sandbox, error) {
	max := s.cfg.Limits.MaxPerTeam
	if rec.TeamID == nacre.SystemTeam {
		max = 0
	}
	if !s.expect(rec, max) {
		return nacre.Sandbox{}, s.errFull()
	}
	out, err := s.make(ctx, rec)
	exit := s.flight.end(rec.ID)
	if err != nil {
		s.roster.leave(rec.ID)
		return nacre.Sandbox{}, err
	}
	if exit != nil {
		s.exited(context.WithoutCancel(ctx), rec.TeamID, rec.ID, *exit)
	}
	return out, nil
}

// expect takes a sandbox that has no record yet in hand and counts it; false when its
// team has max of them. In hand comes first: a census that found it on the roster alone
// would miss its record, and strike it off for good.
func (s *Service) expect(rec nacre.Sandbox, max int) bool {
	s.flight.begin(rec.ID)
	ok := s.roster.enter(rec.TeamID, rec.ID, max)
	if !ok {
		s.flight.end(rec.ID)
	}
	return ok
}

// draft checks the request and makes the record of it. warm tells that the sandbox
// goes on from its template's warm snapshot, and could boot as well.
func (s *Service) draft(ctx context.Context, team nacre.TeamID, r nacre.CreateRequest) (rec nacre.Sandbox, warm bool, err error) {
	if team == "" {
		return rec, false, nacre.Errorf(nacre.CodeUnauthenticated, "a create needs a team")
	}
	if err := s.cfg.Limits.validate(&r); err != nil {
		return rec, false, err
	}
	if r.OnTimeout == nacre.TimeoutPause {
		if err := s.keeps(); err != nil {
			return rec, false, err
		}
	}
	seed := nacre.Sandbox{
		TeamID: team, Template: r.Template, Node: s.place().ID(), Name: r.Name,
		Metadata: r.Metadata, Env: r.Env, Network: r.Network, Secure: r.Secure,
		Timeout: r.Timeout, OnTimeout: r.OnTimeout, AutoResume: r.AutoResume, FilesOnly: r.FilesOnly,
		IdleTimeout: r.IdleTimeout, AlwaysOn: r.AlwaysOn,
	}
	can, err := s.offer(ctx)
	if err != nil {
		return rec, false, err
	}
	tpl, err := s.cfg.Templates.ResolveTemplate(ctx, team, r.Template)
	switch {
	case nacre.IsCode(err, nacre.CodeNotFound) || (err == nil && tpl.Build == ""):
		err = s.ofSnapshot(ctx, &seed, r)
	case err == nil:
		warm, err = s.ofTemplate(&seed, tpl, r, can)
	}
	if err == nil {
		err = mayPauseOn(can, seed)
	}
	if err != nil {
		return rec, false, err
	}
	return s.newborn(seed), warm, nil
}

// ofTemplate makes the record one of the template.
func (s *Service) ofTemplate(rec *nacre.Sandbox, tpl nacre.Template, r nacre.CreateRequest, can nacre.Capabilities) (warm bool, err error) {
	rec.TemplateID, rec.BuildID = tpl.ID, tpl.Build
	if rec.Resources, err = s.cfg.Limits.resources(r.Resources, tpl.Resources); err != nil {
		return false, err
	}
	if rec.Runtime, err = chosen(can, r.Runtime, tpl.Runtime); err != nil {
		return false, err
	}
	if on, _ := can.Of(rec.Runtime); !on.HugePages {
		rec.Resources.HugePages = false // the create asks for another runtime than the template
	}
	if tpl.Warm == "" || s.cfg.Snapshots == nil {
		return false, nil
	}
	if own, err := s.cfg.Limits.resources(nacre.Resources{}, tpl.Resources); err != nil || own != rec.Resources {
		return false, nil // its memory is of another size
	}
	if rec.Runtime != cmp.Or(tpl.Runtime, can.Runtime) {
		return false, nil // it was taken on another
	}
	rec.Snapshot = tpl.Warm
	return true, nil
}

// ofSnapshot makes the record one that goes on from the snapshot that the create
// names instead of a template.
func (s *Service) ofSnapshot(ctx context.Context, rec *nacre.Sandbox, r nacre.CreateRequest) error {
	missing := &nacre.Error{Code: nacre.CodeNotFound, Field: "Template", Message: "template '" + r.Template + "' not found"}
	if s.cfg.Snapshots == nil {
		return missing
	}
	n, err := s.cfg.Snapshots.FindSnapshot(ctx, rec.TeamID, r.Template)
	if nacre.IsCode(err, nacre.CodeNotFound) {
		return missing
	}
	if err != nil {
		return err
	}
	if asked := fill(r.Resources, n.Resources); asked != n.Resources {
		return nacre.Invalidf("Resources", "a sandbox made from a snapshot has its resources: %d CPUs, %d MiB of memory, %d MiB of disk", n.Resources.CPUs, n.Resources.MemoryMiB, n.Resources.DiskMiB)
	}
	rec.Runtime = nacre.RuntimeOf(n.RestoreKey)
	if r.Runtime != "" && r.Runtime != rec.Runtime {
		return nacre.Invalidf("Runtime", "a sandbox made from a snapshot runs on what that was taken on: snapshot %s on %s, and not on %.40s", n.ID, rec.Runtime, r.Runtime)
	}
	if err := s.mayStart(ctx, n); err != nil {
		return err
	}
	s.used(ctx, n)
	rec.TemplateID, rec.BuildID, rec.Resources = n.TemplateID, n.BuildID, n.Resources
	rec.Node, rec.Parent, rec.Snapshot = n.Node, n.Sandbox, n.ID
	rec.Env = merged(n.Env, r.Env)
	if r.Metadata == nil {
		rec.Metadata = nacre.CopiedMetadata(n.Metadata)
	}
	return nil
}

// grown is a sandbox as the snapshot has it.
func (s *Service) grown(n nacre.Snapshot) nacre.Sandbox {
	rec := nacre.Sandbox{
		TeamID: n.TeamID, ID: n.Sandbox, Template: n.Template, TemplateID: n.TemplateID, BuildID: n.BuildID,
		Resources: n.Resources, Metadata: n.Metadata, Env: n.Env, Network: n.Network, Secure: n.Secure,
		Timeout: n.Timeout, OnTimeout: n.OnTimeout,
	}
	setDefault(&rec.Timeout, s.cfg.Limits.DefaultTimeout)
	setDefault(&rec.OnTimeout, nacre.TimeoutKill)
	return rec
}

// newborn is the record of one sandbox made of the seed.
func (s *Service) newborn(seed nacre.Sandbox) nacre.Sandbox {
	now := s.now()
	rec := seed
	rec.ID, rec.State = nacre.NewSandboxID(), nacre.StateCreating
	rec.Metadata, rec.Env = maps.Clone(seed.Metadata), maps.Clone(seed.Env)
	rec.Network.AllowOut, rec.Network.DenyOut = slices.Clone(seed.Network.AllowOut), slices.Clone(seed.Network.DenyOut)
	rec.CreatedAt, rec.StartedAt = now, now
	if !rec.AlwaysOn {
		rec.Deadline = now.Add(rec.Timeout)
	}
	return rec
}

func merged(a, b map[string]string) map[string]string {
	if len(b) == 0 {
		return a
	}
	out := maps.Clone(a)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, b)
	return out
}

// make makes the machine and writes the record. When it fails it has taken back
// what it did.
func (s *Service) make(ctx context.Context, rec nacre.Sandbox) (nacre.Sandbox, error) {
	node := s.nodeOf(rec.Node)
	if node == nil {
		return nacre.Sandbox{}, errNoHost(rec.ID)
	}
	bg := context.WithoutCancel(ctx)
	startCtx, cancel := context.WithCancel(ctx)
	defer cancel()

	b := s.newBirth(rec, cancel)
	eager := time.Now().UnixNano()-s.lastFull.Load() > int64(fullFor)
	switch {
	case !eager:
	case s.cfg.RecordAfter <= 0 || rec.Snapshot != "" && !s.hand.has(rec.Snapshot): // which is kept for the records that name it
		b.begin(bg, nil)
	default:
		after := s.cfg.RecordAfter
		if rec.Snapshot != "" { // a copy: it takes longer, and is known to nobody before its source's fork is answered
			after *= copyRecordAfter
		}
		early := time.AfterFunc(after, func() { b.begin(bg, nil) })
		defer early.Stop()
	}
	spec := specOf(rec)
	spec.Chosen = func(st nacre.Started) { b.begin(bg, &st) }
	started, startErr := node.Start(startCtx, spec)
	gone := ctx.Err()
	switch {
	case startErr == nil && gone == nil:
		b.begin(bg, &started)
	case startErr != nil && !eager && !b.asked.Load():
		return nacre.Sandbox{}, s.full(startErr)
	default:
		b.begin(bg, nil)
	}
	insertErr := b.end()
	after, cancelAfter := context.WithTimeout(bg, s.cfg.StoreTime) // from here on, however long the start took
	defer cancelAfter()
	if insertErr != nil {
		if startErr == nil {
			s.stopMachine(after, node, rec.ID)
		}
		return nacre.Sandbox{}, insertErr
	}
	if startErr != nil {
		return nacre.Sandbox{}, s.failed(after, rec, s.full(startErr))
	}
	if gone != nil {
		err := s.failed(after, rec, nacre.Wrap(nacre.CodeDeadline, gone, "the client went away before the sandbox was ready"))
		s.stopMachine(after, node, rec.ID)
		return nacre.Sandbox{}, err
	}
	if b.runsOn(started.Machine) {
		return b.rec, nil
	}
	out, err := s.join(after, rec, started)
	if err != nil {
		err = s.failed(after, rec, err)
		s.stopMachine(after, node, rec.ID)
	}
	return out, err
}

// full remembers that a node was.
func (s *Service) full(err error) error {
	if nacre.IsCode(err, nacre.CodeExhausted) {
		s.lastFull.Store(time.Now().UnixNano())
	}
	return err
}

func createdEvent(rec nacre.Sandbox) nacre.Event {
	return event(rec, nacre.EventCreated, rec.CreatedAt, map[string]string{"template": rec.Template})
}

// insertRunning writes the record of a sandbox that runs already.
func (s *Service) insertRunning(ctx context.Context, rec nacre.Sandbox, st nacre.Started) (nacre.Sandbox, error) {
	s.roster.run(rec, rec.Timeout) // before anybody else can know the sandbox and move it
	created := createdEvent(rec)
	events, err := s.running(&rec, st)
	if err == nil {
		err = s.cfg.Store.Insert(ctx, rec, append([]nacre.Event{created}, events...)...)
	}
	if err != nil {
		return nacre.Sandbox{}, err
	}
	return rec, nil
}

// join makes the record a running one, on the machine that it came to have.
func (s *Service) join(ctx context.Context, rec nacre.Sandbox, st nacre.Started) (nacre.Sandbox, error) {
	s.roster.run(rec, rec.Timeout)
	return s.cfg.Store.Update(ctx, rec.TeamID, rec.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
		if r.State == nacre.StateRunning { // on one that failed before its guest knew
			r.Machine, r.Runtime, r.BootPath, r.BootTime = st.Machine, st.Runtime, st.BootPath, st.BootTime
			return nil, nil
		}
		return s.running(r, st)
	})
}

// running makes the record one that has a machine.
func (s *Service) running(r *nacre.Sandbox, st nacre.Started) ([]nacre.Event, error) {
	if err := r.Move(nacre.StateRunning); err != nil {
		return nil, err
	}
	now := s.now()
	r.Machine, r.Runtime, r.BootPath, r.BootTime = st.Machine, st.Runtime, st.BootPath, st.BootTime
	r.StartedAt, r.Origin, r.Snapshot = now, r.Snapshot, ""
	if !r.AlwaysOn {
		r.Deadline = now.Add(r.Timeout)
	}
	return []nacre.Event{event(*r, nacre.EventRunning, now, map[string]string{
		"boot_path": string(st.BootPath), "boot_ms": strconv.FormatInt(st.BootTime.Milliseconds(), 10),
	})}, nil
}

// failed records that a create failed, and returns what to tell the caller. A
// store that cannot be reached leaves the record to the reconciler.
func (s *Service) failed(ctx context.Context, rec nacre.Sandbox, cause error) error {
	killed := false
	_, err := s.cfg.Store.Update(ctx, rec.TeamID, rec.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
		if killed = r.State != nacre.StateCreating && r.State != nacre.StateRunning; killed {
			return nil, errNothing
		}
		return s.end(r, nacre.EndFailed, nacre.ErrorMessage(cause))
	})
	if killed {
		return nacre.Errorf(nacre.CodeConflict, "sandbox %s was killed while it was created", rec.ID)
	}
	if err != nil {
		s.log.Error("a failed create could not be recorded; it is tried again", "sandbox", rec.ID, "err", err)
	}
	return cause
}

// stopMachine takes back a start. What fails is left to the reconciler.
func (s *Service) stopMachine(ctx context.Context, node nacre.Node, id nacre.SandboxID) {
	if err := node.Stop(ctx, id); err != nil {
		s.log.Error("a machine could not be stopped; it is tried again", "sandbox", id, "err", err)
	}
}

func specOf(rec nacre.Sandbox) nacre.StartSpec {
	return nacre.StartSpec{
		Sandbox: rec.ID, Team: rec.TeamID, Build: rec.BuildID, Runtime: rec.Runtime, Resources: rec.Resources, Env: rec.Env,
		Network: rec.Network, Secure: rec.Secure, TokenEpoch: rec.TokenEpoch,
		Snapshot: rec.Snapshot,
	}
}

func event(rec nacre.Sandbox, kind nacre.EventKind, at time.Time, data map[string]string) nacre.Event {
	return nacre.Event{Time: at, TeamID: rec.TeamID, SandboxID: rec.ID, Kind: kind, Data: data}
}

// errNothing ends an update that has nothing to write.
var errNothing = errors.New("nothing to change")

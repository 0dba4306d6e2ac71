// The published JavaScript SDKs against a real server. NACRE_SDK names the
// package, NACRE_MODE how it is reached, NACRE_TEST_SLOWNESS how many times as long the
// tests may wait as on a real host; the rest is what `nacre env` prints.
import { after, before, test } from 'node:test'
import assert from 'node:assert/strict'

const sdk = await import(process.env.NACRE_SDK)
const { Sandbox } = sdk
const tls = process.env.NACRE_MODE === 'tls'
const slow = Number(process.env.NACRE_TEST_SLOWNESS ?? 1)
const patient = slow > 1 ? { requestTimeoutMs: 60_000 * slow } : {}
let sbx

before(async () => { sbx = await Sandbox.create({ timeoutMs: 900_000 * slow, metadata: { suite: 'js' }, ...patient }) })
after(async () => { await sbx?.kill() })

const sleep = (ms) => new Promise((r) => setTimeout(r, ms))

// A minute is for what must happen at all, on a host with whatever other work.
async function eventually(check, ms = 60_000, every = 250) {
  const end = Date.now() + ms * slow
  for (;;) {
    const v = await check()
    if (v) return v
    assert.ok(Date.now() < end, 'condition not met in time')
    await sleep(every)
  }
}

async function withSandbox(opts, fn) {
  const usual = { timeoutMs: 120_000 * slow, ...patient }
  const s = typeof opts === 'string' ? await Sandbox.create(opts, usual) : await Sandbox.create({ ...usual, ...opts })
  try { return await fn(s) } finally { await s.kill() }
}

test('run: output, exit code, environment, cwd, user', async () => {
  const r = await sbx.commands.run('echo hello; echo oops >&2')
  assert.deepEqual([r.stdout, r.stderr, r.exitCode], ['hello\n', 'oops\n', 0])
  await assert.rejects(sbx.commands.run('exit 42'), (e) => e instanceof sdk.CommandExitError && e.exitCode === 42)
  assert.equal((await sbx.commands.run('echo $A', { envs: { A: 'zwei' } })).stdout, 'zwei\n')
  assert.equal((await sbx.commands.run('pwd', { cwd: '/usr' })).stdout, '/usr\n')
  assert.equal((await sbx.commands.run('whoami', { user: 'root' })).stdout, 'root\n')
})

test('wire4_04 timeout of one second', async () => {
  await assert.rejects(sbx.commands.run('sleep 10', { timeoutMs: 1000 }), sdk.TimeoutError)
})

test('wire4_05 kill reaps at once; kill and connect of nothing', async () => {
  const h = await sbx.commands.run('sleep 1000', { background: true })
  assert.equal(await sbx.commands.kill(h.pid), true)
  await assert.rejects(sbx.commands.run(`kill -0 ${h.pid}`), sdk.CommandExitError)
  assert.equal(await sbx.commands.kill(999999), false)
  await assert.rejects(sbx.commands.connect(999999))
})

test('wire4_06 connect follows a running command', async () => {
  const h = await sbx.commands.run('echo before; until [ -e /tmp/connected ]; do sleep 0.1; done; echo after', { background: true })
  const c = await sbx.commands.connect(h.pid)
  assert.equal(c.pid, h.pid)
  await sbx.files.write('/tmp/connected', '')
  assert.match((await c.wait()).stdout, /after\n$/)
  assert.equal((await h.wait()).stdout, 'before\nafter\n')
})

test('wire4_07 stdin', async () => {
  let out = ''
  const h = await sbx.commands.run('cat', { background: true, stdin: true, onStdout: (d) => { out += d } })
  await sbx.commands.sendStdin(h.pid, '')
  await sbx.commands.sendStdin(h.pid, 'no newline')
  await eventually(() => out === 'no newline', 60_000, 50)
  await h.kill()
})

test('list of commands', async () => {
  const h = await sbx.commands.run('sleep 66', { background: true })
  assert.ok((await sbx.commands.list()).some((p) => p.pid === h.pid && p.args.includes('sleep 66')))
  await h.kill()
})

test('big output', async () => {
  assert.equal((await sbx.commands.run("head -c 5000000 /dev/zero | tr '\\0' x")).stdout.length, 5_000_000)
})

test('files: write, read, formats, many, empty', async () => {
  const info = await sbx.files.write('js/hello.txt', 'wörld')
  assert.equal(info.path, '/home/user/js/hello.txt')
  assert.equal(await sbx.files.read('js/hello.txt'), 'wörld')
  assert.equal(Buffer.from(await sbx.files.read('js/hello.txt', { format: 'bytes' })).toString(), 'wörld')
  assert.equal(await (await sbx.files.read('js/hello.txt', { format: 'blob' })).text(), 'wörld')
  await sbx.files.write('js/empty', '')
  assert.equal(await sbx.files.read('js/empty'), '')
  const many = await sbx.files.write([{ path: '/0/js.txt', data: 'a' }, { path: 'js/b.txt', data: 'b' }])
  assert.deepEqual(many.map((f) => f.path), ['/0/js.txt', '/home/user/js/b.txt'])
})

test('trap05 write answers exactly name, type, path', async () => {
  const info = await sbx.files.write('js/exact.txt', 'x')
  assert.deepEqual({ name: info.name, type: info.type, path: info.path }, { name: 'exact.txt', type: 'file', path: '/home/user/js/exact.txt' })
})

test('files: list, info, exists, rename, remove, make dir', async () => {
  await sbx.files.write('tree/a/b.txt', '12345')
  assert.deepEqual((await sbx.files.list('tree', { depth: 2 })).map((e) => e.path), ['/home/user/tree/a', '/home/user/tree/a/b.txt'])
  const info = await sbx.files.getInfo('tree/a/b.txt')
  assert.deepEqual([info.size, info.permissions, info.owner], [5, '-rw-r--r--', 'user'])
  assert.equal((await sbx.files.rename('tree/a/b.txt', 'tree/c.txt')).path, '/home/user/tree/c.txt')
  assert.equal(await sbx.files.exists('tree/a/b.txt'), false)
  await assert.rejects(sbx.files.rename('nothing', 'x'), sdk.NotFoundError)
  await sbx.files.remove('nothing')
  assert.equal(await sbx.files.makeDir('made'), true)
  assert.equal(await sbx.files.makeDir('made'), false)
  await assert.rejects(sbx.files.read('nothing'), sdk.NotFoundError)
})

test('watch: exactly create, chmod, write', async () => {
  await sbx.files.makeDir('watched')
  const events = []
  const h = await sbx.files.watchDir('watched', (e) => { events.push([e.type, e.name]) })
  await sbx.files.write('watched/new.txt', 'content')
  await eventually(() => events.length >= 3, 60_000, 50)
  await sleep(200)
  assert.deepEqual(events, [['create', 'new.txt'], ['chmod', 'new.txt'], ['write', 'new.txt']])
  await h.stop()
  await assert.rejects(sbx.files.watchDir('/no/such', () => {}), sdk.NotFoundError)
})

test('signed URLs', async () => {
  await sbx.files.write('s.txt', 'signed')
  const url = await sbx.downloadUrl('s.txt', { user: 'user', useSignatureExpiration: 30 })
  assert.equal(await (await fetch(url)).text(), 'signed')
  const up = await sbx.uploadUrl('up.txt', { user: 'user', useSignatureExpiration: 30 })
  const form = new FormData()
  form.append('file', new Blob(['uploaded']), 'x')
  assert.equal((await fetch(up, { method: 'POST', body: form })).status, 200)
  assert.equal(await sbx.files.read('up.txt'), 'uploaded')
  const old = await sbx.downloadUrl('s.txt', { user: 'user', useSignatureExpiration: -120 })
  const r = await fetch(old)
  assert.equal(r.status, 401)
  assert.deepEqual(await r.json(), { code: 401, message: 'signature is already expired' })
})

test('wire4_08 pty', async () => {
  let out = ''
  const t = await sbx.pty.create({ cols: 80, rows: 24, envs: { ABC: '123' }, onData: (d) => { out += Buffer.from(d).toString() } })
  await sbx.pty.resize(t.pid, { cols: 100, rows: 30 })
  await sbx.pty.sendInput(t.pid, new TextEncoder().encode('until [ "$(stty size)" = "30 100" ]; do sleep 0.05; done; echo $(tput cols)-$ABC\n'))
  await sbx.pty.sendInput(t.pid, new TextEncoder().encode('exit\n'))
  assert.equal((await t.wait()).exitCode, 0)
  assert.match(out, /100-123/)
})

test('pty: reconnect and kill', async () => {
  const t = await sbx.pty.create({ cols: 80, rows: 24, onData: () => {} })
  await t.disconnect()
  let out = ''
  const again = await sbx.pty.connect(t.pid, { onData: (d) => { out += Buffer.from(d).toString() } })
  await sbx.pty.sendInput(t.pid, new TextEncoder().encode('echo back-$((40+2))\n'))
  await eventually(() => out.includes('back-42'), 60_000, 50)
  assert.equal(await sbx.pty.kill(t.pid), true)
  await again.wait().catch(() => {})
})

test('info, metrics, timeout, running, connect', async () => {
  const info = await sbx.getInfo()
  assert.equal(info.sandboxId, sbx.sandboxId)
  assert.deepEqual(info.metadata, { suite: 'js' })
  assert.equal(info.state, 'running')
  const m = await eventually(async () => { const x = await sbx.getMetrics(); return x.length && x }, 15_000)
  assert.equal(m[0].cpuCount, 2)
  const before = (await sbx.getInfo()).endAt
  const other = await Sandbox.connect(sbx.sandboxId, { timeoutMs: 5000 })
  assert.deepEqual((await other.getInfo()).endAt, before)
  assert.equal(await other.isRunning(), true)
  assert.equal((await other.commands.run('echo again')).stdout, 'again\n')
  await other.files.write('o.txt', 'x')
  assert.equal(await sbx.files.read('o.txt'), 'x')
})

test('wire4_13 set timeout', async () => {
  // It has ended a second and a half after its deadline; on a busy host, after the time
  // that ending another one by a request took.
  const [s, other] = [await Sandbox.create({ timeoutMs: 60_000 }), await Sandbox.create({ timeoutMs: 60_000 })]
  await s.setTimeout(3000)
  await sleep(3000)
  await other.kill()
  await sleep(1500)
  assert.equal(await s.isRunning({ requestTimeoutMs: 5000 }), false)
})

test('trap01 kill: true, then false', async () => {
  const s = await Sandbox.create({ timeoutMs: 60_000 })
  assert.equal(await Sandbox.kill(s.sandboxId), true)
  assert.equal(await Sandbox.kill(s.sandboxId), false)
  await s.kill() // of nothing: no error
  assert.equal(await s.isRunning(), false)
  await assert.rejects(Sandbox.connect(s.sandboxId), sdk.NotFoundError)
  await assert.rejects(s.commands.run('echo no'))
})

test('list with filters and pages', async () => {
  const mark = `js${process.hrtime.bigint()}`
  await withSandbox({ metadata: { mark, 'a b': 'c&d=é+1' } }, (one) => withSandbox({ metadata: { mark } }, async (two) => {
    const p = Sandbox.list({ query: { metadata: { mark }, state: ['running'] }, limit: 1 })
    const ids = []
    while (p.hasNext) ids.push(...(await p.nextItems()).map((i) => i.sandboxId))
    assert.deepEqual(ids, [two.sandboxId, one.sandboxId])
    const q = Sandbox.list({ query: { metadata: { 'a b': 'c&d=é+1', mark } } })
    const got = await q.nextItems()
    assert.deepEqual(got.map((i) => i.sandboxId), [one.sandboxId])
    assert.deepEqual(got[0].metadata, { mark, 'a b': 'c&d=é+1' })
  }))
})

test('wire4_17 and 18 network', async () => {
  const curl = (ip) => `curl -s -o /dev/null --max-time ${50 * slow} http://${ip}/`
  await withSandbox({ allowInternetAccess: false }, async (s) => { await assert.rejects(s.commands.run(curl('1.1.1.1'))) })
  await withSandbox({ network: { denyOut: ['0.0.0.0/0'], allowOut: ['1.1.1.1'] } }, async (s) => {
    await s.commands.run(curl('1.1.1.1'))
    await assert.rejects(s.commands.run(curl('8.8.8.8')))
  })
})

test('unknown template and wrong key', async () => {
  await assert.rejects(Sandbox.create('no-such-template'), /no-such-template/)
  await assert.rejects(Sandbox.create({ apiKey: `e2b_${'0'.repeat(40)}` }), sdk.AuthenticationError)
})

test('get host', { skip: tls ? false : 'needs sandbox host names, hence TLS' }, async () => {
  await withSandbox({}, async (s) => {
    await s.commands.run('mkdir -p www && echo served > www/index.html')
    await s.commands.run('python3 -m http.server 8000 --directory www', { background: true })
    const url = `https://${s.getHost(8000)}`
    const body = await eventually(async () => { const r = await fetch(url); return r.status === 200 && r.text() })
    assert.equal(body, 'served\n')
  })
})

// Pause, snapshots and forks. Moru's package calls it betaPause and has no snapshots.
const pause = (s) => (s.pause ? s.pause() : s.betaPause())
const e2b = !!Sandbox.createSnapshot
const e2bOnly = { skip: e2b ? false : "Moru's SDK has no such call" }

test('trap09 wire4_16 pause and resume keep processes, files, environment and token', async () => {
  await withSandbox({ envs: { WHO: 'the create' }, metadata: { a: 'b' } }, async (s) => {
    const sleeper = await s.commands.run('sleep 1000', { background: true })
    await s.commands.run('sleep 2 && echo slept > /tmp/slept', { background: true })
    await s.files.write('kept.txt', 'kept')
    const before = await s.getInfo()
    assert.equal(await pause(s), true)
    assert.equal(await pause(s), false)
    assert.equal(await s.isRunning(), false)
    assert.equal((await s.getInfo()).state, 'paused')
    const again = await Sandbox.connect(s.sandboxId, { timeoutMs: 1000 })
    assert.equal(again.sandboxId, s.sandboxId)
    const after = await s.getInfo()
    assert.ok(after.endAt >= before.endAt)
    assert.deepEqual(after.metadata, { a: 'b' })
    assert.equal(await s.files.read('kept.txt'), 'kept')
    assert.equal((await again.commands.run('echo $WHO')).stdout, 'the create\n')
    assert.ok((await s.commands.list()).some((p) => p.pid === sleeper.pid))
    const c = await s.commands.connect(sleeper.pid)
    await c.kill()
    await eventually(async () => (await s.files.exists('/tmp/slept')) && (await s.files.read('/tmp/slept')) === 'slept\n')
  })
})

test('a command that is followed across a pause ends with the documented error', async () => {
  await withSandbox({}, async (s) => {
    const h = await s.commands.run('sleep 300', { background: true, timeoutMs: 0 })
    const ended = h.wait().then(() => null, (e) => e)
    await pause(s)
    const late = sleep(20_000).then(() => 'late')
    const e = await Promise.race([ended, late])
    assert.ok(e instanceof sdk.TimeoutError || e instanceof sdk.NotFoundError, String(e))
    await s.connect()
    assert.equal((await s.commands.run('pgrep -x sleep')).stdout.trim().split('\n').length, 1)
  })
})

test('auto-pause at the deadline', async () => {
  const s = e2b
    ? await Sandbox.create({ timeoutMs: 120_000, lifecycle: { onTimeout: 'pause' } })
    : await Sandbox.betaCreate({ timeoutMs: 120_000, autoPause: true })
  try {
    await s.files.write('kept.txt', 'kept')
    await s.setTimeout(2000)
    await eventually(async () => (await s.getInfo()).state === 'paused')
    await s.connect({ timeoutMs: 120_000 })
    assert.equal(await s.files.read('kept.txt'), 'kept')
    await s.setTimeout(2000)
    await eventually(async () => (await s.getInfo()).state === 'paused')
    await s.connect({ timeoutMs: 2000 })
    await eventually(async () => (await s.getInfo()).state === 'paused')
    const listed = await Sandbox.list({ query: { state: ['paused'] } }).nextItems()
    assert.ok(listed.some((i) => i.sandboxId === s.sandboxId))
  } finally { assert.equal(await Sandbox.kill(s.sandboxId), true) }
})

test('wake on an SDK call', e2bOnly, async () => {
  await withSandbox({ lifecycle: { onTimeout: 'pause', autoResume: true } }, async (s) => {
    await s.files.write('kept.txt', 'kept')
    await s.pause()
    assert.equal(await s.isRunning(), false)
    const all = await Promise.all([...Array(5)].map((_, i) => s.commands.run(`cat kept.txt; echo ${i}`)))
    assert.deepEqual(all.map((r) => r.stdout), [...Array(5)].map((_, i) => `kept${i}\n`))
    assert.equal((await s.getInfo()).state, 'running')
  })
})

test('snapshots and forks', e2bOnly, async () => {
  await withSandbox({}, async (s) => {
    await s.files.write('state.txt', 'at the snapshot')
    const snap = await s.createSnapshot({ name: `js${process.hrtime.bigint()}` })
    assert.deepEqual(snap.names, [snap.snapshotId])
    await s.files.write('state.txt', 'after it')
    await withSandbox(snap.snapshotId, async (made) => { assert.equal(await made.files.read('state.txt'), 'at the snapshot') })
    const p = Sandbox.listSnapshots({ sandboxId: s.sandboxId, limit: 1 })
    assert.deepEqual((await p.nextItems()).map((x) => x.snapshotId), [snap.snapshotId])
    assert.equal(p.hasNext, false)
    assert.equal(await Sandbox.deleteSnapshot(snap.snapshotId), true)
    assert.equal(await Sandbox.deleteSnapshot(snap.snapshotId), false)
    const forks = await s.fork({ count: 3, timeoutMs: 60_000 })
    try {
      const seen = await Promise.all([s, ...forks].map(async (f) => (await f.commands.run('cat /etc/machine-id; head -c 8 /dev/urandom | od -An -tx1')).stdout))
      assert.equal(new Set(seen).size, 4)
      for (const f of forks) assert.equal(await f.files.read('state.txt'), 'after it')
    } finally { await Promise.all(forks.map((f) => f.kill())) }
  })
})

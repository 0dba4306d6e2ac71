// Walks the control plane with the package named on the command line.
const assert = require('node:assert')
const { Sandbox, NotFoundError, AuthenticationError } = require(process.argv[2])

async function main() {
  const metadata = { 'a b': 'c&d=é+1' }
  const s = await Sandbox.create('base', { timeoutMs: 120_000, metadata, envs: { X: '1' } })
  const info = await s.getInfo()
  assert.equal(info.sandboxId, s.sandboxId)
  assert.deepEqual(info.metadata, metadata)
  assert.equal(info.endAt - info.startedAt, 120_000)

  const other = await Sandbox.create('base')
  const found = Sandbox.list({ query: { metadata, state: ['running', 'paused'] } })
  assert.deepEqual((await found.nextItems()).map((i) => i.sandboxId), [s.sandboxId])
  const pages = Sandbox.list({ limit: 1 })
  const ids = []
  while (pages.hasNext) ids.push(...(await pages.nextItems()).map((i) => i.sandboxId))
  assert.deepEqual(ids.sort(), [s.sandboxId, other.sandboxId].sort())

  await s.setTimeout(600_000)
  const before = (await s.getInfo()).endAt
  assert.ok(before > info.endAt)
  await Sandbox.connect(s.sandboxId, { timeoutMs: 1000 })
  assert.deepEqual((await s.getInfo()).endAt, before)
  const m = await Sandbox.getMetrics(s.sandboxId)
  assert.equal(m.length, 1)

  assert.equal(await Sandbox.kill(s.sandboxId, { apiKey: process.env.OTHER_KEY }), false)
  await s.kill()
  assert.equal(await Sandbox.kill(s.sandboxId), false)
  await assert.rejects(Sandbox.connect(s.sandboxId), NotFoundError)
  await assert.rejects(Sandbox.create('base', { apiKey: 'e2b_' + '0'.repeat(40) }), AuthenticationError)
  await assert.rejects(Sandbox.create('nope'), /not found/)
  await pausing()
}

// The parsers of pause, connect, snapshots and forks, and what the statuses become.
async function pausing() {
  const s = await Sandbox.create('base', { timeoutMs: 120_000 })
  assert.equal(await s.betaPause(), true)
  assert.equal(await s.betaPause(), false)
  assert.equal((await Sandbox.list({ query: { state: ['paused'] } }).nextItems())[0].sandboxId, s.sandboxId)
  assert.equal((await Sandbox.connect(s.sandboxId)).sandboxId, s.sandboxId)
  if (!Sandbox.createSnapshot) return // Moru has the rest not
  assert.equal(await s.pause({ keepMemory: false }), true)
  await s.connect()
  const auto = await Sandbox.create('base', { lifecycle: { onTimeout: 'pause', autoResume: true } })
  assert.deepEqual((await auto.getInfo()).lifecycle, { onTimeout: 'pause', autoResume: true })
  const snap = await s.createSnapshot({ name: 'js' })
  assert.deepEqual(snap.names, [snap.snapshotId])
  assert.deepEqual((await Sandbox.listSnapshots({ limit: 1 }).nextItems()).map((x) => x.snapshotId), [snap.snapshotId])
  await Sandbox.create(snap.snapshotId)
  assert.equal(await Sandbox.deleteSnapshot(snap.snapshotId), true)
  assert.equal(await Sandbox.deleteSnapshot(snap.snapshotId), false)
  assert.equal((await s.fork({ count: 2 })).length, 2)
  await assert.rejects(Sandbox.fork('i' + 'a'.repeat(20)), NotFoundError)
}

main().catch((err) => { console.error(err); process.exit(1) })

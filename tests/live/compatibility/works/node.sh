# Timers, files, a server on loopback, a worker thread and a child process.
cat >program.mjs <<'JS'
import assert from 'node:assert'
import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { readFile, writeFile } from 'node:fs/promises'
import http from 'node:http'
import { setTimeout } from 'node:timers/promises'
import { promisify } from 'node:util'
import { Worker } from 'node:worker_threads'

await setTimeout(1)
await writeFile('file', 'text')
assert.equal(await readFile('file', 'utf8'), 'text')

const server = http.createServer((_, response) => response.end('served'))
await once(server.listen(0, '127.0.0.1'), 'listening')
const reply = await fetch(`http://127.0.0.1:${server.address().port}/`)
assert.equal(await reply.text(), 'served')
server.closeAllConnections()
server.close()

const code = 'require("node:worker_threads").parentPort.postMessage(6 * 7)'
const [answer] = await once(new Worker(code, { eval: true }), 'message')
assert.equal(answer, 42)

const { stdout } = await promisify(execFile)('echo', ['child'])
assert.equal(stdout, 'child\n')
JS
exec node program.mjs

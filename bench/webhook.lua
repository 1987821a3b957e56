-- wrk's side of `make bench-webhook`: signed deliveries from a file, each under a GUID of its own.
-- The signature covers the body alone, so the bodies are signed ahead and the GUIDs are made here.
-- Arguments: file, a prefix for this round's GUIDs, milliseconds of a connection between two deliveries (0: none).

local threads = 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(args)
  prefix = args[2] .. "-" .. number .. "-"
  pause = tonumber(args[3])
  count = 0
  ready = {}
  math.randomseed(number + 1)
  for line in io.lines(args[1]) do
    local signature, body = line:match("^(%S+)\t(.*)$")
    ready[#ready + 1] = "\r\nX-Hub-Signature-256: " .. signature .. "\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
  end
  head = "POST /webhooks/github HTTP/1.1\r\nHost: bench\r\nUser-Agent: GitHub-Hookshot/bench\r\nAccept: */*\r\n"
    .. "Content-Type: application/json\r\nX-GitHub-Event: workflow_job\r\nX-GitHub-Hook-ID: 1\r\n"
    .. "X-GitHub-Hook-Installation-Target-ID: 1\r\nX-GitHub-Hook-Installation-Target-Type: integration\r\n"
    .. "X-GitHub-Delivery: " .. prefix
end

function request()
  count = count + 1
  return head .. count .. ready[(count * 7 + number * 131) % #ready + 1]
end

-- Exponential pauses: arrivals that know nothing of each other.
function delay()
  if pause == 0 then return 0 end
  return math.floor(-math.log(1 - math.random()) * pause)
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests": %d, "seconds": %.6f, "refused": %d, "broken": %d, "p50_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f}\n',
    summary.requests, summary.duration / 1e6, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency.max / 1000))
end

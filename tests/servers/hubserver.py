#!/usr/bin/env python3
"""Loopback stand-in for a Hugging Face Hub, for acceptance tests.  Standard library + the git binary only.

    python hubserver.py --root DIR --port 8800 [--ready-file F] [--seed seed.json]

Two listeners are opened: the Hub itself and a second origin that plays the object store/CDN, so that a
client that forwards its bearer token to the store is caught (see "auth_leaks" in the stats).

Storage: every repository is a real bare git repository (commit/blob/tree ids are genuine git ids, and
`git clone http://host:port/ns/name` works); large files are pointer blobs plus one content-addressed
file per sha256 under <root>/lfs.

Control surface (never counted in the statistics):
    GET    /_admin/health | stats | log?since=N&route=R | config | state
    POST   /_admin/reset           {"stats":true,"log":true,"faults":true,"repos":false}
    POST   /_admin/config          any of the CONFIG keys below
    POST   /_admin/tokens          {"hf_x":{"user":"alice","role":"write","orgs":{"org":"write"}}}
    POST   /_admin/faults          one fault or a list (see Fault); DELETE clears
    POST   /_admin/ratelimit       {"api":{"quota":10,"window":60},"resolvers":..,"commit":..} ; {} removes
    POST   /_admin/access          {"repo":"models/ns/name","user":"bob","granted":true}   (gated repos)
    POST   /_admin/corrupt-lfs     {"sha256":"..."}                  flip a byte in the store
"""
import argparse, base64, collections, datetime, email.utils, fnmatch, hashlib, hmac, http.server, json, mimetypes
import os, re, secrets, shutil, socket, socketserver, struct, subprocess, sys, tempfile, threading, time, uuid
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

try:
    import yaml
except ImportError:
    yaml = None

CONFIG = {
    "lfs_threshold": 10 * 1000 * 1000,   # bytes; at or above -> lfs
    "binary_is_lfs": True,               # NUL byte in the 512 byte sample -> lfs
    "max_regular_file": 10 * 1024 * 1024,
    "max_commit_ops": 25000,
    "multipart_threshold": 32 * 1024 * 1024,
    "multipart_chunk": 16 * 1024 * 1024,
    "presign_ttl": 3600,
    "tree_page": 1000,
    "tree_page_expand": 50,
    "commits_page": 50,
    "discussions_page": 50,
    "lfs_scope": "repo",                 # "repo": known sha must already belong to this repo; "global": any repo
    "resolve_cache_redirect": False,     # 307 same-origin redirect for small files, as the hosted service does
    "xet": "off",                        # "off": token routes answer 404 | "http": full xet upload/download path
                                         # (needs hf_xet importable here to assemble files)
    "xet_global_dedup": False,           # True: answer /v1/chunks for chunks of already registered shards
    "log_bodies": 4096,                  # bytes of request body kept in the log
    "oidc": {},                          # {"<id token>": {"user": "alice", "resource": "model:alice/x" or null}}
}
DEFAULT_TOKENS = {
    "hf_alice_write": {"user": "alice", "role": "write", "orgs": {"sae-org": "write"}},
    "hf_alice_read": {"user": "alice", "role": "read", "orgs": {"sae-org": "write"}},
    "hf_bob_write": {"user": "bob", "role": "write", "orgs": {}},
    "hf_carol_fine": {"user": "carol", "role": "fineGrained", "orgs": {"sae-org": "read"},
                      "write_repos": ["models/carol/allowed"], "read_repos": []},
    "hf_carol_all": {"user": "carol", "role": "fineGrained", "orgs": {"sae-org": "read"}, "namespaces": ["carol"]},
}
LFS_PATTERNS = ("7z arrow bin bz2 ckpt ftz gz h5 joblib mlmodel model msgpack npy npz onnx ot parquet pb pickle pkl "
                "pt pth rar safetensors tar tflite tgz wasm xz zip zst").split()
GITATTRIBUTES = "".join(f"*.{e} filter=lfs diff=lfs merge=lfs -text\n" for e in LFS_PATTERNS)
TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}
SHA40 = re.compile(r"^[0-9a-f]{40}$")
SHA64 = re.compile(r"^[0-9a-f]{64}$")
NAME = re.compile(r"^(?!.*(?:--|\.\.))[A-Za-z0-9._-]{1,96}$")
POINTER = re.compile(rb"\Aversion https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n\Z")
SECRET = secrets.token_bytes(32)


def now():
    return datetime.datetime.now(datetime.timezone.utc)


def iso(t=None):
    t = t or now()
    return t.strftime("%Y-%m-%dT%H:%M:%S.") + f"{t.microsecond // 1000:03d}Z"


class Fail(Exception):
    def __init__(self, status, message, code=None, headers=None, body=None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers, self.body = dict(headers or {}), body


def pointer_bytes(sha, size):
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {size}\n".encode()


def git_date(s):
    return iso(datetime.datetime.fromisoformat(s.strip()).astimezone(datetime.timezone.utc))


def parse_front_matter(text):
    """(card dict, error or None) for a README."""
    m = re.match(r"\A(?:\ufeff)?---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(?:\r?\n|\Z)", text, re.S)
    if not m:
        return None, None
    if yaml is None:
        card = {}
        key = None
        for line in m.group(1).splitlines():
            if re.match(r"^\s*-\s+", line) and key:
                card.setdefault(key, [])
                if isinstance(card[key], list):
                    card[key].append(line.split("-", 1)[1].strip().strip("\"'"))
            elif ":" in line and not line.startswith((" ", "#")):
                key, v = line.split(":", 1)
                key, v = key.strip(), v.strip().strip("\"'")
                card[key] = v if v else []
        return card, None
    try:
        card = yaml.safe_load(m.group(1))
    except yaml.YAMLError as e:
        return None, f"YAML: {e}"
    if card is None:
        return {}, None
    if not isinstance(card, dict):
        return None, "metadata block must be a mapping"
    return card, None


def check_card(card):
    """Approximation of the hosted validator: (errors, warnings)."""
    errs, warns = [], []
    if card is None:
        return errs, warns
    for key in ("license", "library_name", "pipeline_tag", "license_name", "license_link"):
        v = card.get(key)
        if v is not None and not isinstance(v, str) and not (key == "license" and isinstance(v, list)):
            errs.append(f'"{key}" must be a string')
    for key in ("tags", "datasets", "base_model", "language", "metrics"):
        v = card.get(key)
        if v is not None:
            for item in (v if isinstance(v, list) else [v]):
                if not isinstance(item, str):
                    errs.append(f'"{key}" must be a string or a list of strings')
                    break
    lic = card.get("license")
    if isinstance(lic, str) and not re.match(r"^[a-z0-9][a-z0-9.\-]*$", lic):
        errs.append('"license" must be one of the known lower-case identifiers')
    for b in ([card.get("base_model")] if isinstance(card.get("base_model"), str) else card.get("base_model") or []):
        if isinstance(b, str) and not re.match(r"^[\w.\-]+(/[\w.\-]+)?$", b):
            errs.append('"base_model" must be a model id')
    mi = card.get("model-index")
    if mi is not None and not isinstance(mi, list):
        errs.append('"model-index" must be a list')
    return errs, warns


def xet_hex(b):
    """32 raw bytes -> the hex spelling xet uses (four little-endian 64-bit words)."""
    return "".join("%016x" % v for v in struct.unpack("<4Q", b))


def chunk_table(data):
    """[(offset, end, unpacked length)] for the chunks of a serialized xorb; stops at a footer."""
    out, pos = [], 0
    while pos + 8 <= len(data):
        if data[pos:pos + 7] == b"XETBLOB" or data[pos] != 0:
            break
        clen, ulen = int.from_bytes(data[pos + 1:pos + 4], "little"), int.from_bytes(data[pos + 5:pos + 8], "little")
        if pos + 8 + clen > len(data):
            raise Fail(400, "malformed xorb")
        out.append((pos, pos + 8 + clen, ulen))
        pos += 8 + clen
    if not out:
        raise Fail(400, "malformed xorb")
    return out


def parse_shard(d):
    """(files, chunk hashes) of an uploaded metadata shard. File: hash, sha256 or None, terms (xorb, bytes, from, to)."""
    if len(d) < 48:
        raise Fail(400, "short shard")
    pos, files, chunks = 48, [], []
    while True:
        fh = d[pos:pos + 32]
        flags, n = struct.unpack_from("<II", d, pos + 32)
        pos += 48
        if fh == b"\xff" * 32 or len(fh) < 32:
            break
        terms = []
        for _ in range(n):
            _, size, a, b = struct.unpack_from("<IIII", d, pos + 32)
            terms.append([xet_hex(d[pos:pos + 32]), size, a, b])
            pos += 48
        if flags & 0x80000000:
            pos += 48 * n
        sha = None
        if flags & 0x40000000:
            sha = xet_hex(d[pos:pos + 32])
            pos += 48
        files.append({"hash": xet_hex(fh), "sha256": sha, "terms": terms})
    while pos + 48 <= len(d):
        xh = d[pos:pos + 32]
        _, n = struct.unpack_from("<II", d, pos + 32)
        pos += 48
        if xh == b"\xff" * 32:
            break
        for _ in range(n):
            chunks.append(xet_hex(d[pos:pos + 32]))
            pos += 48
    return files, chunks


class Git:
    """One bare repository."""

    def __init__(self, path):
        self.path = path
        self.env = {"PATH": os.environ.get("PATH", ""), "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull,
                    "HOME": os.path.dirname(path), "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}

    def run(self, *args, input=None, env=None, check=True):
        p = subprocess.run(["git", "--git-dir", self.path, *args], input=input, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, env={**self.env, **(env or {})})
        if check and p.returncode:
            raise RuntimeError(f"git {args}: {p.stderr.decode(errors='replace')}")
        return p.stdout if check else p

    def init(self):
        os.makedirs(self.path, exist_ok=True)
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", self.path], check=True, env=self.env)
        for k, v in (("http.receivepack", "true"), ("uploadpack.allowAnySHA1InWant", "true"),
                     ("uploadpack.allowFilter", "true"), ("gc.auto", "0"), ("core.logAllRefUpdates", "false")):
            self.run("config", k, v)

    def resolve(self, rev):
        for cand in ([rev] if SHA40.match(rev) else []) + ([rev] if rev.startswith("refs/") else
                                                           [f"refs/heads/{rev}", f"refs/tags/{rev}"]) + \
                ([rev] if re.match(r"^[0-9a-f]{7,40}$", rev) else []):
            p = self.run("rev-parse", "-q", "--verify", cand + "^{commit}", check=False)
            if p.returncode == 0:
                return p.stdout.decode().strip()
        return None

    def blob(self, oid):
        return self.run("cat-file", "blob", oid)

    def write_blob(self, data):
        return self.run("hash-object", "-w", "--stdin", input=data).decode().strip()

    def ls(self, commit, path="", recursive=True, trees=True):
        """[(mode, type, oid, size or None, path)]"""
        args = ["ls-tree", "-z", "-l"] + (["-r"] if recursive else []) + (["-t"] if trees and recursive else [])
        spec = commit + (":" + path if path else "")
        p = self.run(*args, spec, check=False)
        if p.returncode:
            return None
        out = []
        for rec in p.stdout.split(b"\0"):
            if rec:
                meta, name = rec.split(b"\t", 1)
                mode, typ, oid, size = meta.decode().split()
                name = name.decode("utf-8", "surrogateescape")
                out.append((mode, typ, oid, None if size == "-" else int(size), (path + "/" if path else "") + name))
        return out

    def commit(self, ref, parent, adds, deletes, message, author):
        """adds: {path: blob oid}; deletes: set of paths. Atomic ref move (old value checked). Returns oid."""
        fd, idx = tempfile.mkstemp(prefix="idx-", dir=self.path)
        os.close(fd)
        os.unlink(idx)
        env = {"GIT_INDEX_FILE": idx, "GIT_AUTHOR_NAME": author, "GIT_AUTHOR_EMAIL": f"{author}@users.noreply.local",
               "GIT_COMMITTER_NAME": author, "GIT_COMMITTER_EMAIL": f"{author}@users.noreply.local"}
        try:
            if parent:
                self.run("read-tree", parent, env=env)
            lines = b"".join(b"0 " + b"0" * 40 + b"\t" + p.encode() + b"\0" for p in deletes)
            lines += b"".join(f"100644 {o}\t".encode() + p.encode() + b"\0" for p, o in adds.items())
            if lines:
                self.run("update-index", "--add", "--replace", "-z", "--index-info", input=lines, env=env)
            tree = self.run("write-tree", env=env).decode().strip()
            oid = self.run("commit-tree", tree, *(["-p", parent] if parent else []), input=message.encode(),
                           env=env).decode().strip()
            self.run("update-ref", ref, oid, parent or "0" * 40)
            return oid
        finally:
            for f in (idx, idx + ".lock"):
                if os.path.exists(f):
                    os.unlink(f)


class Repo:
    def __init__(self, store, rtype, rid, meta):
        self.store, self.type, self.id, self.meta = store, rtype, rid, meta
        self.key = f"{rtype}s/{rid}"
        self.git = Git(os.path.join(store.root, "repos", rtype + "s", rid + ".git"))
        self.lock = threading.RLock()

    @property
    def ns(self):
        return self.id.split("/")[0]

    def url(self, base):
        return f"{base}/{'' if self.type == 'model' else self.type + 's/'}{self.id}"


class Store:
    def __init__(self, root):
        self.root = os.path.abspath(root)
        os.makedirs(os.path.join(self.root, "lfs", "tmp"), exist_ok=True)
        self.lock = threading.RLock()
        self.state_file = os.path.join(self.root, "state.json")
        self.tokens = dict(DEFAULT_TOKENS)
        self.repos, self.moved = {}, {}
        self.config = dict(CONFIG)
        self.blob_lfs = {}                       # git blob oid -> (sha256, size) | None
        self.xet_dir = os.path.join(self.root, "xet")
        self.xet_by_sha, self.xet_chunks, self.tables = {}, {}, {}
        self.xet_init()
        if os.path.exists(self.state_file):
            d = json.load(open(self.state_file))
            self.tokens, self.moved = d["tokens"], d.get("moved", {})
            for key, meta in d["repos"].items():
                t, rid = key.split("/", 1)
                self.repos[key] = Repo(self, TYPES[t], rid, meta)

    def save(self):
        with self.lock:
            d = {"tokens": self.tokens, "moved": self.moved, "repos": {k: r.meta for k, r in self.repos.items()}}
            tmp = self.state_file + ".tmp"
            with open(tmp, "w") as f:
                json.dump(d, f)
            os.replace(tmp, self.state_file)

    def xet_init(self):
        self.xet_by_sha, self.xet_chunks, self.tables = {}, {}, {}
        for sub in ("xorbs", "files", "shards"):
            os.makedirs(os.path.join(self.xet_dir, sub), exist_ok=True)
        for sid in os.listdir(os.path.join(self.xet_dir, "shards")):
            files, chunks = parse_shard(open(os.path.join(self.xet_dir, "shards", sid), "rb").read())
            self.xet_by_sha.update({f["sha256"]: f["hash"] for f in files if f["sha256"]})
            for c in chunks:
                self.xet_chunks.setdefault(c, sid)

    def xorb_table(self, x):
        if x not in self.tables:
            with open(os.path.join(self.xet_dir, "xorbs", x), "rb") as f:
                self.tables[x] = chunk_table(f.read())
        return self.tables[x]

    def lfs_path(self, sha):
        return os.path.join(self.root, "lfs", sha[:2], sha[2:4], sha)

    def has_lfs(self, sha, size=None):
        p = self.lfs_path(sha)
        return os.path.isfile(p) and (size is None or os.path.getsize(p) == size)

    def pointer(self, repo, oid, size):
        """(sha256, size) when the blob is an lfs pointer."""
        if size is None or not 100 <= size <= 200:
            return None
        if oid not in self.blob_lfs:
            m = POINTER.match(repo.git.blob(oid))
            self.blob_lfs[oid] = (m.group(1).decode(), int(m.group(2))) if m else None
        return self.blob_lfs[oid]


class Fault:
    """{"route":"commit","method":"POST","path":"regex","status":503,"headers":{},"body":"","times":1,"skip":0,
        "action":"status|reset|close|delay|truncate|hang|corrupt","when":"before|after","delay":s,"after_bytes":n}

    when=after lets the request take effect and then spoils the answer (the lost-acknowledgement case).
    truncate sends after_bytes of the body then resets (or closes in order with "fin": true); corrupt flips the body byte at "offset"; reset with
    after_bytes and when=before reads that much of the upload before the RST."""

    def __init__(self, d):
        self.d = d
        self.left = d.get("times", 1)
        self.skip = d.get("skip", 0)
        self.hits = 0

    def match(self, method, route, path):
        d = self.d
        if self.left == 0 or ("method" in d and d["method"].upper() != method) or \
                ("route" in d and not fnmatch.fnmatch(route, d["route"])) or \
                ("path" in d and not re.search(d["path"], path)):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.left > 0:
            self.left -= 1
        self.hits += 1
        return True


class Hub:
    def __init__(self, root):
        self.store = Store(root)
        self.lock = threading.RLock()
        self.base = self.cdn = None
        self.faults, self.ratelimits, self.windows = [], {}, {}
        self.reset_stats()
        self.log, self.seq = collections.deque(maxlen=20000), 0
        self.uploads, self.xet_tokens, self.xet_lock = {}, {}, threading.Lock()
        self.inflight = self.max_inflight = 0

    def reset_stats(self):
        self.stats = collections.defaultdict(lambda: {"requests": 0, "bytes_in": 0, "bytes_out": 0, "status": {}})
        self.auth_leaks, self.max_inflight = 0, 0

    def record(self, e):
        with self.lock:
            self.seq += 1
            e["seq"] = self.seq
            self.log.append(e)
            s = self.stats[e["route"]]
            s["requests"] += 1
            s["bytes_in"] += e["bytes_in"]
            s["bytes_out"] += e["bytes_out"]
            k = str(e["status"])
            s["status"][k] = s["status"].get(k, 0) + 1

    def add_out(self, e, n):
        if e:
            with self.lock:
                e["bytes_out"] += n
                self.stats[e["route"]]["bytes_out"] += n

    def take_fault(self, method, route, path):
        with self.lock:
            for f in self.faults:
                if f.match(method, route, path):
                    return f.d
        return None

    def sign(self, method, path, **params):
        params["exp"] = str(int(time.time()) + self.store.config["presign_ttl"])
        msg = f"{method} {path}?{urlencode(sorted(params.items()))}".encode()
        params["sig"] = hmac.new(SECRET, msg, hashlib.sha256).hexdigest()
        return f"{path}?{urlencode(params)}"

    def check_sig(self, method, path, q):
        q = dict(q)
        sig = q.pop("sig", "")
        msg = f"{method} {path}?{urlencode(sorted(q.items()))}".encode()
        good = hmac.compare_digest(sig, hmac.new(SECRET, msg, hashlib.sha256).hexdigest())
        if not good or int(q.get("exp", 0)) < time.time():
            raise Fail(403, "SignatureDoesNotMatch" if not good else "Request has expired",
                       body=b"<Error><Code>AccessDenied</Code></Error>", headers={"Content-Type": "application/xml"})
        return q


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads, request_queue_size, allow_reuse_address = True, 256, True

    def __init__(self, addr, hub, is_cdn):
        self.hub, self.is_cdn = hub, is_cdn
        super().__init__(addr, Handler)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError, ValueError)):
            super().handle_error(request, client_address)


class Reset(Exception):
    pass


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "hubserver/1"
    disable_nagle_algorithm = True
    timeout = 300

    def log_message(self, *a):
        pass

    # ---------------------------------------------------------------- request plumbing
    def body_reader(self, limit=None):
        """Yield the request body in chunks, whatever the framing."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while True:
                n = int(self.rfile.readline().split(b";")[0].strip() or b"0", 16)
                if n == 0:
                    while self.rfile.readline() not in (b"\r\n", b"\n", b""):
                        pass
                    break
                left = n
                while left:
                    b = self.rfile.read(min(left, 1 << 20))
                    if not b:
                        raise ConnectionError("short body")
                    left -= len(b)
                    self.bytes_in += len(b)
                    yield b
                self.rfile.readline()
        else:
            left = int(self.headers.get("Content-Length") or 0)
            while left:
                b = self.rfile.read(min(left, 1 << 20))
                if not b:
                    raise ConnectionError("short body")
                left -= len(b)
                self.bytes_in += len(b)
                yield b
        self.body_done = True

    def read_body(self):
        if self._body is None:
            self._body = b"".join(self.body_reader())
        return self._body

    def json(self):
        try:
            return json.loads(self.read_body() or b"{}")
        except ValueError:
            raise Fail(400, "invalid JSON body")

    def rst(self):
        try:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        except OSError:
            pass
        self.close_connection = True

    def reply(self, status, body=b"", headers=None, ctype=None):
        headers = dict(headers or {})
        if isinstance(body, (dict, list)):
            body, ctype = json.dumps(body).encode(), ctype or "application/json; charset=utf-8"
        elif isinstance(body, str):
            body, ctype = body.encode(), ctype or "text/plain; charset=utf-8"
        self.out = (status, body, headers, ctype)

    def flush_reply(self, fault):
        status, body, headers, ctype = self.out
        is_file = isinstance(body, tuple)                 # (path, start, stop)
        length = body[2] - body[1] if is_file else len(body)
        headers.setdefault("X-Request-Id", "Root=" + self.rid)
        if ctype:
            headers.setdefault("Content-Type", ctype)
        if status not in (204, 304):
            headers["Content-Length"] = str(headers.get("Content-Length", length))
        headers.update(self.rl_headers)
        self.resp_headers = headers
        self.note(status)                                 # counted before the client can see the answer
        self.send_response(status)
        for k, v in headers.items():
            for one in (v if isinstance(v, list) else [v]):
                self.send_header(k, one)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = length
        act = (fault or {}).get("action")
        if act == "truncate":
            limit = min(length, fault.get("after_bytes", 0))
        flip = fault.get("offset", 0) if act == "corrupt" else None
        sent = 0

        def push(b):
            nonlocal sent, flip
            if flip is not None and sent <= flip < sent + len(b):
                i, b = flip - sent, bytearray(b)
                b[i] ^= 0xFF
                b, flip = bytes(b), None
            self.hub.add_out(self.entry_, len(b))
            self.wfile.write(b)
            sent += len(b)
        if is_file:
            with open(body[0], "rb") as f:
                f.seek(body[1])
                while sent < limit:
                    push(f.read(min(1 << 18, limit - sent)))
        else:
            push(body[:limit])
        if act == "truncate":
            self.wfile.flush()
            time.sleep(fault.get("delay", 0.05))
            self.entry_["aborted"] = True
            if fault.get("fin"):                          # orderly close, short body
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            raise Reset

    def handle_any(self):
        self._body, self.bytes_in, self.body_done, self.entry_ = None, 0, False, None
        self.out, self.resp_headers, self.rl_headers, self.fault = None, {}, {}, None
        self.rid, self.t0, self.route = uuid.uuid4().hex, time.time(), "unrouted"
        u = urlsplit(self.path)
        self.upath, self.query = u.path, parse_qs(u.query, keep_blank_values=True)
        self.q1 = {k: v[0] for k, v in self.query.items()}
        self.parts = [unquote(p) for p in u.path.split("/")[1:]]
        hub, fn, fault = self.server.hub, None, None
        self.hub, self.store = hub, hub.store
        admin = self.parts[0] == "_admin"
        try:
            try:
                if admin:
                    self.route = "_admin"
                    self.admin()
                else:
                    with hub.lock:
                        hub.inflight += 1
                        hub.max_inflight = max(hub.max_inflight, hub.inflight)
                    try:
                        self.route, fn = (self.route_cdn if self.server.is_cdn else self.route_hub)()
                        fault = self.fault = hub.take_fault(self.command, self.route, self.path)
                        if fault and fault.get("when", "before") == "before":
                            self.apply_fault(fault)
                        if self.out is None:
                            self.rate_limit(self.route)
                            fn()
                        if fault and fault.get("when") == "after":
                            self.apply_fault(fault)
                    finally:
                        with hub.lock:
                            hub.inflight -= 1
            except Fail as e:
                h = dict(e.headers)
                h.setdefault("X-Error-Message", e.message.replace("\n", " "))
                if e.code:
                    h["X-Error-Code"] = e.code
                self.reply(e.status, e.body if e.body is not None else {"error": e.message}, h)
            except (ConnectionError, Reset):
                raise
            except Exception as e:
                import traceback
                traceback.print_exc()
                self.reply(500, {"error": f"hubserver bug: {type(e).__name__}: {e}"})
            if self.out is None:
                self.reply(500, {"error": "no answer"})
            if not self.body_done:                       # drain what the handler did not read
                left = int(self.headers.get("Content-Length") or 0) - self.bytes_in
                if self.headers.get("Transfer-Encoding") or left > (1 << 26):
                    self.close_connection = True
                elif left > 0:
                    for _ in self.body_reader():
                        pass
            self.flush_reply(fault)
        except Reset:
            self.note(-1)
            self.rst()
        except (ConnectionError, TimeoutError, BrokenPipeError):
            self.note(-2)
            self.close_connection = True

    def note(self, status):
        """Write the log entry and the counters, once per request."""
        if self.entry_ is not None or self.route == "_admin" or self.headers.get("x-hubserver-internal"):
            self.entry_ = self.entry_ or {}
            return
        hub, body, n = self.hub, self._body or b"", self.store.config["log_bodies"]
        h = {k.lower(): v for k, v in self.headers.items()}
        auth = h.pop("authorization", None)
        if self.server.is_cdn and auth and not auth[7:].startswith("xet_"):
            with hub.lock:
                hub.auth_leaks += 1
        self.entry_ = {"t": round(self.t0, 3), "ms": round((time.time() - self.t0) * 1000, 1), "route": self.route,
                       "origin": "cdn" if self.server.is_cdn else "hub", "method": self.command, "path": self.path,
                       "auth": self.auth_label(auth), "headers": h, "status": status, "bytes_in": self.bytes_in,
                       "bytes_out": 0, "body": body[:n].decode("utf-8", "replace"),
                       "resp_headers": self.resp_headers,
                       "resp_body": (self.out[1][:n].decode("utf-8", "replace")
                                     if self.out and isinstance(self.out[1], bytes) else None),
                       "fault": self.fault}
        hub.record(self.entry_)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = handle_any

    def auth_label(self, auth):
        if not auth:
            return None
        tok = auth.split(None, 1)[-1]
        t = self.store.tokens.get(tok)
        return f"{t['user']}:{t['role']}" if t else "unknown:" + hashlib.sha256(tok.encode()).hexdigest()[:8]

    def apply_fault(self, d):
        act = d.get("action", "status")
        if d.get("delay") and act != "truncate":
            time.sleep(d["delay"])
        if act in ("reset", "close", "hang"):
            want = d.get("after_bytes", 0)
            if want and d.get("when", "before") == "before":
                for _ in self.body_reader():
                    if self.bytes_in >= want:
                        break
            if act == "hang":
                time.sleep(d.get("seconds", 30))
            if act == "close":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                raise ConnectionError
            raise Reset
        if act == "status":
            self.out = None
            if d.get("when", "before") == "before":
                self.read_body()
            raise Fail(d.get("status", 503), d.get("message", "injected fault"), d.get("code"), d.get("headers"),
                       d["body"].encode() if "body" in d else None)

    def rate_limit(self, route):
        bucket = "resolvers" if route.startswith("resolve") else "api"
        if route == "commit" and "commit" in self.hub.ratelimits:  # the hosted service counts commits apart, by the hour
            bucket = "commit"
        rl = self.hub.ratelimits.get(bucket)
        if not rl or self.server.is_cdn:
            return
        who = self.headers.get("Authorization") or self.client_address[0]
        with self.hub.lock:
            w = self.hub.windows.get((bucket, who))
            if not w or w[0] + rl["window"] <= time.time():
                w = self.hub.windows[(bucket, who)] = [time.time(), 0]
            w[1] += 1
            left = rl["quota"] - w[1]
            t = max(0, int(w[0] + rl["window"] - time.time()) + 1)
        self.rl_headers = {"RateLimit": f'"{bucket}";r={max(0, left)};t={t}',
                           "RateLimit-Policy": f'"fixed window";"{bucket}";q={rl["quota"]};w={rl["window"]}'}
        if left < 0:
            raise Fail(429, "We had to rate limit you", headers={"Retry-After": str(t)} if rl.get("retry_after") else {})

    # ---------------------------------------------------------------- auth
    def who(self, required=False):
        a = self.headers.get("Authorization")
        if not a:
            if required:
                raise Fail(401, "Invalid username or password.")
            return None
        scheme, _, val = a.partition(" ")
        if scheme.lower() == "basic":
            val = base64.b64decode(val).decode().partition(":")[2]
        t = self.store.tokens.get(val.strip())
        if not t or t.get("revoked"):
            raise Fail(401, "Invalid credentials in Authorization header")
        return t

    def ns_role(self, t, ns):
        if t["user"] == ns:
            return "admin"
        return t.get("orgs", {}).get(ns)

    def can_read(self, t, repo):
        if not repo.meta.get("private"):
            return True
        if t is None or not self.ns_role(t, repo.ns):
            return False
        return t["role"] != "fineGrained" or repo.ns in t.get("namespaces", []) or \
            repo.key in t.get("read_repos", []) + t.get("write_repos", [])

    def need_write(self, repo, t=None, rev=None):
        t = t or self.who()
        m = re.match(r"refs/pr/(\d+)$", rev or "")
        if m and t and t["role"] != "read" and any(d["num"] == int(m.group(1)) and d["author"]["name"] == t["user"]
                                                   for d in repo.meta["discussions"]):
            return t                                       # authors may push to their own pull request
        if t is None:
            raise Fail(401, "Invalid username or password.", None if self.can_read(None, repo) else "RepoNotFound")
        role = self.ns_role(t, repo.ns)
        ok = role in ("admin", "write") and (t["role"] == "write" or
                                             (t["role"] == "fineGrained" and (repo.key in t.get("write_repos", []) or
                                                                              repo.ns in t.get("namespaces", []))))
        if not ok:
            raise Fail(403, "Forbidden: this token does not have write access to " + repo.id)
        return t

    def repo(self, rtype_plural, rid):
        key = f"{rtype_plural}/{rid}"
        t = self.who()
        r = self.store.repos.get(key)
        if r is None and key in self.store.moved:
            dst = self.store.moved[key]
            if self.command in ("GET", "HEAD"):
                raise Fail(307, "moved", headers={"Location": self.path.replace(rid, dst, 1)}, body=b"")
            r = self.store.repos.get(f"{rtype_plural}/{dst}")
        if r is None or not self.can_read(t, r):
            raise Fail(404 if t else 401, "Repository not found" if t else "Invalid username or password.",
                       "RepoNotFound")
        if r.meta.get("disabled"):
            raise Fail(403, "Access to this resource is disabled.")
        return r, t

    def gate(self, r, t):
        g = r.meta.get("gated")
        if not g or (t and (self.ns_role(t, r.ns) or t["user"] in r.meta.get("access", []))):
            return
        if t is None:
            raise Fail(401, f"Access to {r.type} {r.id} is restricted. You must have access to it and be "
                            f"authenticated to access it. Please log in.", "GatedRepo")
        raise Fail(403, f"Access to {r.type} {r.id} is restricted and you are not in the authorized list. "
                        f"Visit {r.url(self.hub.base)} to ask for access.", "GatedRepo")

    def commit_of(self, r, rev):
        c = r.git.resolve(rev)
        if not c:
            raise Fail(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        return c

    # ---------------------------------------------------------------- routing
    def route_hub(self):
        p, m = self.parts, self.command
        if p[0] == "api":
            if p[1:] == ["whoami-v2"]:
                return "whoami", self.h_whoami
            if p[1:] == ["repos", "create"] and m == "POST":
                return "repo.create", self.h_create
            if p[1:] == ["repos", "delete"] and m == "DELETE":
                return "repo.delete", self.h_delete
            if p[1:] == ["repos", "move"] and m == "POST":
                return "repo.move", self.h_move
            if p[1:] == ["validate-yaml"]:
                return "validate-yaml", self.h_yaml
            if p[1:] == ["agent-harnesses"]:
                return "agent-harnesses", lambda: self.reply(200, {"standardEnvVars": [], "harnesses": {}})
            if len(p) > 1 and p[1] == "telemetry":
                return "telemetry", lambda: self.reply(200)
            if p[1:] == ["complete_multipart"]:
                return "lfs.complete", self.h_complete
            if len(p) > 2 and p[1] == "resolve-cache":
                return "resolve-cache", lambda: self.h_resolve(p[2], "/".join(p[3:5]), p[5], "/".join(p[6:]), True)
            if len(p) > 1 and p[1] in TYPES:
                if len(p) == 2:
                    return "repo.list", lambda: self.h_list(p[1])
                if len(p) >= 4:
                    return self.route_api(p[1], f"{p[2]}/{p[3]}", p[4:])
            return "unrouted", self.h_404
        if p == ["oauth", "token"] and m == "POST":
            return "oauth.token", self.h_oauth
        if p[-1] == "" and len(p) == 1:
            return "index", lambda: self.reply(200, "hubserver\n")
        t = "models"
        if p[0] in ("datasets", "spaces"):
            t, p = p[0], p[1:]
        if len(p) >= 2:
            ns, name, rest = p[0], p[1], p[2:]
            bare = name[:-4] if name.endswith(".git") else name
            rid = f"{ns}/{bare}"
            if rest[:3] == ["info", "lfs", "objects"] and rest[3:] == ["batch"]:
                return "lfs.batch", lambda: self.h_batch(t, rid)
            if rest == ["info", "lfs", "verify"]:
                return "lfs.verify", lambda: self.h_verify(t, rid)
            if rest in (["info", "refs"], ["git-upload-pack"], ["git-receive-pack"]):
                return "git." + rest[-1], lambda: self.h_git(t, rid, "/".join(rest))
            if len(rest) >= 3 and rest[0] == "resolve":
                return ("resolve.head" if m == "HEAD" else "resolve.get",
                        lambda: self.h_resolve(t, rid, rest[1], "/".join(rest[2:])))
            if len(rest) >= 3 and rest[0] == "raw":
                return "raw", lambda: self.h_raw(t, rid, rest[1], "/".join(rest[2:]))
            if not rest or rest[0] in ("commit", "tree", "blob", "discussions"):
                return "page", lambda: (self.repo(t, rid), self.reply(200, "<html></html>", ctype="text/html"))
        return "unrouted", self.h_404

    def route_api(self, t, rid, rest):
        m = self.command
        a = rest[0] if rest else ""
        tail = "/".join(rest[2:])
        rev = rest[1] if len(rest) > 1 else "main"
        if not rest:
            return "repo.info", lambda: self.h_info(t, rid, "main")
        if a == "revision" and len(rest) == 2:
            return "repo.info", lambda: self.h_info(t, rid, rev)
        if a == "tree":
            return "tree", lambda: self.h_tree(t, rid, rev, tail)
        if a == "paths-info" and m == "POST":
            return "paths-info", lambda: self.h_paths(t, rid, rev)
        if a == "preupload" and m == "POST":
            return "preupload", lambda: self.h_preupload(t, rid, rev)
        if a == "commit" and m == "POST":
            return "commit", lambda: self.h_commit(t, rid, rev)
        if a == "commits":
            return "commits", lambda: self.h_commits(t, rid, rev)
        if a == "refs":
            return "refs", lambda: self.h_refs(t, rid)
        if a == "branch":
            return ("branch.create" if m == "POST" else "branch.delete"), lambda: self.h_branch(t, rid, rest[1])
        if a == "tag":
            return ("tag.create" if m == "POST" else "tag.delete"), lambda: self.h_tag(t, rid, rest[1])
        if a == "settings":
            return "repo.settings", lambda: self.h_settings(t, rid)
        if a == "auth-check":
            return "auth-check", lambda: self.h_authcheck(t, rid, rest[1:] == ["write"])
        if a == "super-squash":
            return "super-squash", lambda: self.h_squash(t, rid, rev)
        if a == "lfs-files" and len(rest) == 1:
            return "lfs-files", lambda: self.h_lfsfiles(t, rid)
        if a == "discussions":
            return "discussions." + (rest[2] if len(rest) > 2 else ("create" if m == "POST" else
                                     "get" if len(rest) > 1 else "list")), lambda: self.h_disc(t, rid, rest[1:])
        if a in ("xet-write-token", "xet-read-token"):
            return a, lambda: self.h_xet(t, rid, a)
        return "unrouted", self.h_404

    def route_cdn(self):
        p, m = self.parts, self.command
        if p[0] == "store" and len(p) == 2 and SHA64.match(p[1]):
            if m == "PUT":
                return ("lfs.put-part" if "partNumber" in self.q1 else "lfs.put"), lambda: self.h_put(p[1])
            return "lfs.get", lambda: self.h_get(p[1])
        if p[0] in ("v1", "v2") and len(p) >= 2:
            if p[0] == "v1" and p[1] in ("xorbs", "shards", "chunks", "reconstructions", "telemetry"):
                return "cas." + p[1], lambda: self.h_cas(p[1], p[-1])
            return "cas." + "-".join(p[:2]), self.h_404       # v2 and xorb-grants: the client falls back to v1
        if p[0] == "xorb-data" and len(p) == 2:
            return "cas.xorb-data", lambda: self.h_cas("xorb-data", p[1])
        return "unrouted", self.h_404

    def h_404(self):
        raise Fail(404, "Sorry, we can't find the page you are looking for.")

    # ---------------------------------------------------------------- identity and repositories
    def h_oauth(self):
        """Token exchange for CI publishers: subject tokens are listed under CONFIG["oidc"] = {jwt: {"user","resource"}}."""
        raw = self.read_body().decode()
        d = json.loads(raw) if raw.lstrip().startswith("{") else {k: v[0] for k, v in parse_qs(raw).items()}
        known = self.store.config["oidc"].get(d.get("subject_token"))
        if not known or known.get("resource") not in (None, d.get("resource")):
            return self.reply(400, {"error": "invalid_grant", "error_description": "subject token refused"})
        tok = "hf_oidc_" + uuid.uuid4().hex
        self.store.tokens[tok] = {"user": known["user"], "role": "write", "orgs": known.get("orgs", {})}
        self.reply(200, {"access_token": tok, "token_type": "bearer", "expires_in": known.get("expires_in", 3600),
                         "issued_token_type": "urn:ietf:params:oauth:token-type:access_token"})

    def h_whoami(self):
        t = self.who(required=True)
        self.reply(200, {
            "type": "user", "id": hashlib.md5(t["user"].encode()).hexdigest()[:24], "name": t["user"],
            "fullname": t["user"].title(), "email": f"{t['user']}@example.test", "emailVerified": True,
            "canPay": False, "periodEnd": None, "isPro": False, "avatarUrl": "/avatars/x.svg",
            "orgs": [{"type": "org", "id": hashlib.md5(o.encode()).hexdigest()[:24], "name": o, "fullname": o,
                      "email": None, "canPay": False, "periodEnd": None, "isEnterprise": False,
                      "avatarUrl": "", "roleInOrg": role} for o, role in t.get("orgs", {}).items()],
            "auth": {"type": "access_token", "accessToken": {"displayName": "acceptance", "role": t["role"],
                                                            "createdAt": "2026-01-01T00:00:00.000Z",
                                                            **self.fine_grained(t)}}})

    @staticmethod
    def fine_grained(t):
        """What a token of that kind may, as the Hub tells its holder; "namespaces" of a token are whole ones it may write to."""
        if t["role"] != "fineGrained":
            return {}
        repos = [("model", key.partition("/")[2]) for key in t.get("write_repos", [])]
        owners = [("user" if n == t["user"] else "org", n) for n in t.get("namespaces", [])]
        return {"fineGrained": {"canReadGatedRepos": False, "global": [], "scoped": [
            {"entity": {"_id": hashlib.md5(n.encode()).hexdigest()[:24], "type": kind, "name": n},
             "permissions": ["repo.content.read", "repo.write"]} for kind, n in repos + owners]}}

    def h_create(self):
        t = self.who(required=True)
        d = self.json()
        typ, ns, name = d.get("type") or "model", d.get("organization") or t["user"], d.get("name")
        if typ + "s" not in TYPES or not name or not NAME.match(name) or name.endswith(".git"):
            raise Fail(400, f"Invalid repo name: {ns}/{name}")
        rid, key = f"{ns}/{name}", f"{typ}s/{ns}/{name}"
        role = self.ns_role(t, ns)
        if role not in ("admin", "write") or not (t["role"] == "write" or key in t.get("write_repos", []) or
                                                  ns in t.get("namespaces", [])):
            raise Fail(403, f'You don\'t have the rights to create a {typ} under the namespace "{ns}"')
        with self.store.lock:
            if key in self.store.repos:
                r = self.store.repos[key]
                raise Fail(409, f"You already created this {typ} repo",
                           body=json.dumps({"error": f"You already created this {typ} repo",
                                            "url": r.url(self.hub.base)}).encode(),
                           headers={"Content-Type": "application/json"})
            priv = d.get("private") if d.get("visibility") is None else d["visibility"] == "private"
            r = Repo(self.store, typ, rid, {"private": bool(priv), "gated": False, "createdAt": iso(),
                                            "lfs": [], "discussions": [], "access": [],
                                            "_id": uuid.uuid4().hex[:24]})
            r.git.init()
            r.git.commit("refs/heads/main", None, {".gitattributes": r.git.write_blob(GITATTRIBUTES.encode())}, set(),
                         "initial commit", t["user"])
            self.store.repos[key] = r
            self.store.moved.pop(key, None)
            self.store.save()
        self.reply(200, {"url": r.url(self.hub.base), "name": rid, "id": r.meta["_id"]})

    def h_delete(self):
        t = self.who(required=True)
        d = self.json()
        typ = d.get("type") or "model"
        r, t = self.repo(typ + "s", f"{d.get('organization') or t['user']}/{d['name']}")
        self.need_write(r, t)
        with self.store.lock:
            del self.store.repos[r.key]
            shutil.rmtree(r.git.path, ignore_errors=True)
            self.store.save()
        self.reply(200, "OK")

    def h_move(self):
        t = self.who(required=True)
        d = self.json()
        tp = (d.get("type") or "model") + "s"
        r, t = self.repo(tp, d["fromRepo"])
        self.need_write(r, t)
        ns, name = d["toRepo"].split("/")
        if self.ns_role(t, ns) not in ("admin", "write"):
            raise Fail(403, f"You don't have access to namespace {ns}")
        with self.store.lock:
            key = f"{tp}/{d['toRepo']}"
            if key in self.store.repos:
                raise Fail(409, f"A repository named {d['toRepo']} already exists")
            new = Repo(self.store, r.type, d["toRepo"], r.meta)
            os.makedirs(os.path.dirname(new.git.path), exist_ok=True)
            os.rename(r.git.path, new.git.path)
            del self.store.repos[r.key]
            self.store.repos[key] = new
            self.store.moved[r.key] = d["toRepo"]
            self.store.save()
        self.reply(200, "OK")

    def h_settings(self, tp, rid):
        r, t = self.repo(tp, rid)
        self.need_write(r, t)
        d = self.json()
        if "visibility" in d:
            r.meta["private"] = d["visibility"] == "private"
        if "private" in d:
            r.meta["private"] = bool(d["private"])
        if "gated" in d:
            r.meta["gated"] = d["gated"]
        self.store.save()
        self.reply(200, {"private": r.meta["private"], "gated": r.meta["gated"]})

    def h_authcheck(self, tp, rid, write):
        r, t = self.repo(tp, rid)
        if write:
            self.need_write(r, t)
        else:
            self.gate(r, t)
        self.reply(200, {})

    def h_yaml(self):
        d = self.json()
        card, err = parse_front_matter(d.get("content", ""))
        errs, warns = ([err], []) if err else check_card(card)
        if card is None and not err:
            warns.append("empty or missing yaml metadata in repo card")
        self.reply(400 if errs else 200, {"errors": [{"message": e} for e in errs],
                                          "warnings": [{"message": w} for w in warns]})

    # ---------------------------------------------------------------- reading
    def card(self, r, commit):
        p = r.git.run("cat-file", "blob", f"{commit}:README.md", check=False)
        if p.returncode:
            return None
        return parse_front_matter(p.stdout.decode("utf-8", "replace"))[0]

    def h_info(self, tp, rid, rev):
        r, t = self.repo(tp, rid)
        c = self.commit_of(r, rev)
        exp = self.query.get("expand", []) + self.query.get("expand[]", [])
        if exp and set(exp) <= {"sha", "private", "gated"}:  # nothing that is in the files
            known = {"_id": r.meta["_id"], "id": r.id, "sha": c, "private": r.meta["private"], "gated": r.meta["gated"]}
            return self.reply(200, {k: v for k, v in known.items() if k in [*exp, "_id", "id"]})
        blobs = self.q1.get("blobs", "").lower() in ("true", "1")
        sib, used = [], 0
        names = set()
        for mode, typ, oid, size, path in r.git.ls(c, trees=False):
            names.add(path)
            e = {"rfilename": path}
            ptr = self.store.pointer(r, oid, size)
            used += ptr[1] if ptr else size
            if blobs:
                e.update(blobId=oid, size=ptr[1] if ptr else size)
                if ptr:
                    e["lfs"] = {"sha256": ptr[0], "size": ptr[1], "pointerSize": size}
            sib.append(e)
        card = self.card(r, c) or {}
        tags = []
        lib = card.get("library_name")
        for x in [lib] + list(card.get("tags") or []) + [card.get("pipeline_tag")]:
            if isinstance(x, str) and x not in tags:
                tags.append(x)
        if any(n.endswith(".safetensors") for n in names):
            tags.insert(min(1, len(tags)), "safetensors")
        bm = card.get("base_model")
        for b in ([bm] if isinstance(bm, str) else bm or []):
            tags.append(f"base_model:{b}")
        lic = card.get("license")
        if isinstance(lic, str):
            tags.append(f"license:{lic}")
        tags.append("region:us")
        date = r.git.run("log", "-1", "--format=%cI", c).decode().strip()
        full = {"_id": r.meta["_id"], "id": r.id, "modelId": r.id, "author": r.ns, "sha": c,
                "lastModified": git_date(date),
                "private": r.meta["private"], "gated": r.meta["gated"], "disabled": False, "downloads": 0,
                "likes": 0, "tags": tags, "siblings": sib, "createdAt": r.meta["createdAt"], "usedStorage": used,
                "cardData": card or None, "spaces": []}
        if lib:
            full["library_name"] = lib
        if card.get("pipeline_tag"):
            full["pipeline_tag"] = card["pipeline_tag"]
        if "securityStatus" in self.q1:
            full["securityRepoStatus"] = {"scansDone": True, "filesWithIssues": []}
        if exp:
            full = {k: v for k, v in full.items() if k in exp + ["_id", "id"]}
        self.reply(200, full)

    def h_list(self, tp):
        t = self.who()
        out = []
        for r in self.store.repos.values():
            if r.type != TYPES[tp] or not self.can_read(t, r):
                continue
            card = self.card(r, r.git.resolve("main")) or {}
            tags = [x for x in [card.get("library_name")] + list(card.get("tags") or []) if isinstance(x, str)]
            if self.q1.get("author") not in (None, r.ns) or self.q1.get("search", "").lower() not in r.id.lower():
                continue
            if not all(f in tags for f in self.query.get("filter", [])):
                continue
            out.append({"_id": r.meta["_id"], "id": r.id, "modelId": r.id, "private": r.meta["private"],
                        "likes": 0, "downloads": 0, "tags": sorted(set(tags)), "createdAt": r.meta["createdAt"]})
        self.reply(200, out[: int(self.q1.get("limit", 1000))])

    def entry(self, r, rec, last=None):
        mode, typ, oid, size, path = rec
        if typ == "tree":
            e = {"type": "directory", "oid": oid, "size": 0, "path": path}
        else:
            ptr = self.store.pointer(r, oid, size)
            e = {"type": "file", "oid": oid, "size": ptr[1] if ptr else size, "path": path}
            if ptr:
                e["lfs"] = {"oid": ptr[0], "size": ptr[1], "pointerSize": size}
                xh = self.store.config["xet"] != "off" and self.store.xet_by_sha.get(ptr[0])
                if xh:
                    e["xetHash"] = xh
        if last:
            out = r.git.run("log", "-1", "--format=%H%x00%s%x00%cI", last, "--", path).decode().strip().split("\0")
            e["lastCommit"] = {"id": out[0], "title": out[1], "date": git_date(out[2])}
            if typ != "tree":
                e["securityFileStatus"] = {"status": "safe", "avScan": None, "pickleImportScan": None}
        return e

    def h_tree(self, tp, rid, rev, path):
        r, t = self.repo(tp, rid)
        c = self.commit_of(r, rev)
        rec = self.q1.get("recursive", "").lower() in ("true", "1")
        exp = self.q1.get("expand", "").lower() in ("true", "1")
        path = path.strip("/")
        if path:
            k = r.git.run("cat-file", "-t", f"{c}:{path}", check=False).stdout.strip()
            if k != b"tree":
                raise Fail(404, f"{path} does not exist on \"{rev}\"", "EntryNotFound", {"X-Repo-Commit": c})
        items = r.git.ls(c, path, recursive=rec)
        page = int(self.q1.get("limit", self.store.config["tree_page_expand" if exp else "tree_page"]))
        off = int(base64.urlsafe_b64decode(self.q1["cursor"]).decode()) if "cursor" in self.q1 else 0
        h = {"X-Repo-Commit": c}
        if off + page < len(items):
            q = dict(self.q1, cursor=base64.urlsafe_b64encode(str(off + page).encode()).decode(), limit=str(page))
            h["Link"] = f'<{self.hub.base}{self.upath}?{urlencode(q)}>; rel="next"'
        self.reply(200, [self.entry(r, x, c if exp else None) for x in items[off:off + page]], h)

    def h_paths(self, tp, rid, rev):
        r, t = self.repo(tp, rid)
        c = self.commit_of(r, rev)
        if "json" in self.headers.get("Content-Type", ""):
            d = self.json()
            paths, exp = d.get("paths", []), d.get("expand", False)
        else:
            d = parse_qs(self.read_body().decode())
            paths, exp = d.get("paths", []), d.get("expand", [""])[0].lower() == "true"
        if len(paths) > 1000:
            raise Fail(413, "too many parameters")
        want = {p.strip("/") for p in paths}
        self.reply(200, [self.entry(r, x, c if exp else None) for x in r.git.ls(c) if x[4] in want])

    def h_raw(self, tp, rid, rev, path):
        r, t = self.repo(tp, rid)
        self.gate(r, t)
        c = self.commit_of(r, rev)
        p = r.git.run("cat-file", "blob", f"{c}:{path}", check=False)
        if p.returncode:
            raise Fail(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": c})
        self.reply(200, p.stdout, {"X-Repo-Commit": c}, "text/plain; charset=utf-8")

    def h_resolve(self, tp, rid, rev, path, cached=False):
        r, t = self.repo(tp, rid)
        self.gate(r, t)
        c = self.commit_of(r, rev)
        p = r.git.run("rev-parse", "-q", "--verify", f"{c}:{path}", check=False)
        oid = p.stdout.decode().strip()
        h = {"X-Repo-Commit": c, "Accept-Ranges": "bytes"}
        if p.returncode or r.git.run("cat-file", "-t", oid).strip() != b"blob":
            raise Fail(404, "Entry not found", "EntryNotFound", h)
        size = int(r.git.run("cat-file", "-s", oid))
        ptr = self.store.pointer(r, oid, size)
        name = path.rsplit("/", 1)[-1]
        h["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(name)}; filename=\"{name}\";"
        if ptr:
            sha, n = ptr
            h.update({"X-Linked-Size": str(n), "X-Linked-Etag": f'"{sha}"', "ETag": f'"{oid}"',
                      "Location": self.hub.cdn + self.hub.sign("GET", f"/store/{sha}", name=name)})
            xh = self.store.config["xet"] != "off" and self.store.xet_by_sha.get(sha)
            if xh:
                h["X-Xet-Hash"] = xh
                h["Link"] = (f'<{self.hub.base}/api/{tp}/{rid}/xet-read-token/{c}>; rel="xet-auth", '
                             f'<{self.hub.base}/xet-reconstruct/{xh}>; rel="xet-reconstruction-info"')
            return self.reply(302, f"Found. Redirecting to {h['Location']}", h)
        if self.store.config["resolve_cache_redirect"] and not cached:
            h.update({"Location": f"/api/resolve-cache/{tp}/{rid}/{c}/{quote(path)}?etag={quote(oid)}",
                      "X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(size)})
            return self.reply(307, "Temporary Redirect", h)
        h["ETag"] = f'"{oid}"'
        data = r.git.blob(oid)
        ctype = mimetypes.guess_type(name)[0] or "text/plain; charset=utf-8"
        self.ranged(data, None, len(data), h, ctype)

    def ranged(self, data, path, size, h, ctype):
        rng = re.match(r"bytes=(\d*)-(\d*)$", self.headers.get("Range", ""))
        if rng and (rng.group(1) or rng.group(2)):
            a, b = rng.groups()
            start, stop = (int(a), min(size, int(b) + 1) if b else size) if a else (max(0, size - int(b)), size)
            if start >= size or stop <= start:
                h["Content-Range"] = f"bytes */{size}"
                return self.reply(416, b"", h)
            h["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            return self.reply(206, data[start:stop] if data is not None else (path, start, stop), h, ctype)
        self.reply(200, data if data is not None else (path, 0, size), h, ctype)

    def h_get(self, sha):
        self.hub.check_sig("GET", self.upath, self.q1)
        if not self.store.has_lfs(sha):
            raise Fail(404, "NoSuchKey")
        p = self.store.lfs_path(sha)
        self.ranged(None, p, os.path.getsize(p), {"ETag": f'"{sha}"', "Accept-Ranges": "bytes"},
                    "application/octet-stream")

    # ---------------------------------------------------------------- writing
    def attr_lfs(self, r, c):
        p = r.git.run("cat-file", "blob", f"{c}:.gitattributes", check=False)
        return [l.split()[0] for l in p.stdout.decode("utf-8", "replace").splitlines()
                if "filter=lfs" in l and not l.startswith("#")]

    def ignored(self, text, paths):
        if not text:
            return set()
        with tempfile.TemporaryDirectory() as d:
            subprocess.run(["git", "init", "-q", d], check=True)
            with open(os.path.join(d, ".gitignore"), "w") as f:
                f.write(text)
            p = subprocess.run(["git", "-C", d, "check-ignore", "--no-index", "-z", "--stdin"],
                               input=b"\0".join(x.encode() for x in paths), stdout=subprocess.PIPE)
            return {x.decode() for x in p.stdout.split(b"\0") if x}

    def h_preupload(self, tp, rid, rev):
        r, t = self.repo(tp, rid)
        if self.q1.get("create_pr") and t:
            pass
        else:
            self.need_write(r, t, rev)
        c = self.commit_of(r, rev)
        d = self.json()
        files, cfg = d.get("files", []), self.store.config
        if len(files) > 1000:
            raise Fail(413, "too many files")
        ign = d.get("gitIgnore")
        if ign is None:
            p = r.git.run("cat-file", "blob", f"{c}:.gitignore", check=False)
            ign = p.stdout.decode("utf-8", "replace") if p.returncode == 0 else ""
        skip = self.ignored(ign, [f["path"] for f in files])
        pats = self.attr_lfs(r, c)
        have = {x[4]: x for x in r.git.ls(c, trees=False)}
        out = []
        for f in files:
            path, name = f["path"], f["path"].rsplit("/", 1)[-1]
            lfs = f["size"] >= cfg["lfs_threshold"] or \
                any(fnmatch.fnmatchcase(name, p) or fnmatch.fnmatchcase(path, p) for p in pats) or \
                (cfg["binary_is_lfs"] and b"\0" in base64.b64decode(f.get("sample") or ""))
            oid = None
            if path in have:
                _, _, boid, bsize, _ = have[path]
                ptr = self.store.pointer(r, boid, bsize)
                oid = ptr[0] if ptr else boid
            out.append({"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": path in skip,
                        "oid": oid})
        self.reply(200, {"files": out, "commitOid": c})

    def h_batch(self, tp, rid):
        r, t = self.repo(tp, rid)
        d = self.json()
        op, out, cfg = d.get("operation"), [], self.store.config
        lfs_ct = "application/vnd.git-lfs+json"
        if op == "download":
            self.gate(r, t)
            for o in d["objects"]:
                e = {"oid": o["oid"], "size": o["size"]}
                if o["oid"] in r.meta["lfs"] and self.store.has_lfs(o["oid"]):
                    e["actions"] = {"download": {"href": self.hub.cdn + self.hub.sign("GET", f"/store/{o['oid']}")}}
                else:
                    e["error"] = {"code": 404, "message": "Object does not exist"}
                out.append(e)
            return self.reply(200, {"transfer": "basic", "objects": out}, ctype=lfs_ct)
        t = self.need_write(r, t, (d.get("ref") or {}).get("name"))
        multi = "multipart" in d.get("transfers", [])
        for o in d["objects"]:
            sha, size = o["oid"], o["size"]
            e = {"oid": sha, "size": size, "authenticated": True}
            if not SHA64.match(sha) or size < 0:
                e["error"] = {"code": 422, "message": "invalid object"}
            elif self.store.has_lfs(sha, size) and (cfg["lfs_scope"] == "global" or sha in r.meta["lfs"]):
                pass                                                    # known: no actions -> client skips the PUT
            elif multi and size > cfg["multipart_threshold"]:
                uid = uuid.uuid4().hex
                n = -(-size // cfg["multipart_chunk"])
                with self.hub.lock:
                    self.hub.uploads[uid] = {"oid": sha, "size": size, "parts": {}, "n": n}
                hdr = {"chunk_size": str(cfg["multipart_chunk"])}
                for i in range(1, n + 1):
                    hdr[f"{i:05d}"] = self.hub.cdn + self.hub.sign("PUT", f"/store/{sha}", uploadId=uid,
                                                                   partNumber=str(i), repo=r.key)
                e["actions"] = {"upload": {"href": self.hub.base + self.hub.sign(
                    "POST", "/api/complete_multipart", uploadId=uid, oid=sha), "header": hdr},
                    "verify": self.verify_action(r, t, sha)}
            else:
                e["actions"] = {"upload": {"href": self.hub.cdn + self.hub.sign("PUT", f"/store/{sha}",
                                                                                size=str(size), repo=r.key)},
                                "verify": self.verify_action(r, t, sha)}
            out.append(e)
        self.reply(200, {"transfer": "multipart" if any("chunk_size" in x.get("actions", {}).get("upload", {})
                         .get("header", {}) for x in out) else "basic", "objects": out}, ctype=lfs_ct)

    def verify_action(self, r, t, sha):
        path = r.url("") + ".git/info/lfs/verify"
        return {"href": self.hub.base + self.hub.sign("POST", path, oid=sha, repo=r.key), "header": {}}

    def save_stream(self, want_sha=None, want_size=None):
        fd, tmp = tempfile.mkstemp(dir=os.path.join(self.store.root, "lfs", "tmp"))
        h, md, n = hashlib.sha256(), hashlib.md5(), 0
        try:
            with os.fdopen(fd, "wb") as f:
                for b in self.body_reader():
                    h.update(b)
                    md.update(b)
                    n += len(b)
                    f.write(b)
            if want_size is not None and n != want_size:
                raise Fail(400, f"size mismatch: announced {want_size}, got {n}")
            if want_sha is not None and h.hexdigest() != want_sha:
                raise Fail(400, "XAmzContentSHA256Mismatch: content does not hash to the announced oid")
            return tmp, md.hexdigest(), n
        except BaseException:
            os.path.exists(tmp) and os.unlink(tmp)
            raise

    def h_put(self, sha):
        q = self.hub.check_sig("PUT", self.upath, self.q1)
        if "partNumber" in q:
            up = self.hub.uploads.get(q["uploadId"])
            if not up:
                raise Fail(404, "NoSuchUpload")
            tmp, md, n = self.save_stream()
            with self.hub.lock:
                old = up["parts"].get(int(q["partNumber"]))
                up["parts"][int(q["partNumber"])] = (tmp, md, n)
            if old:
                os.unlink(old[0])
            return self.reply(200, b"", {"ETag": f'"{md}"'})
        tmp, md, n = self.save_stream(sha, int(q["size"]))
        self.land(tmp, sha)
        self.reply(200, b"", {"ETag": f'"{md}"'})

    def land(self, tmp, sha):
        dst = self.store.lfs_path(sha)
        os.makedirs(os.path.dirname(dst), exist_ok=True)
        os.replace(tmp, dst)

    def h_complete(self):
        q = self.hub.check_sig("POST", self.upath, self.q1)
        d = self.json()
        up = self.hub.uploads.get(q["uploadId"])
        if not up or d.get("oid") != up["oid"]:
            raise Fail(404, "NoSuchUpload")
        got = [(p["partNumber"], p["etag"].strip('"')) for p in d["parts"]]
        if got != [(i, up["parts"].get(i, (0, None))[1]) for i in range(1, up["n"] + 1)]:
            raise Fail(400, "InvalidPart")
        fd, tmp = tempfile.mkstemp(dir=os.path.join(self.store.root, "lfs", "tmp"))
        h, n = hashlib.sha256(), 0
        with os.fdopen(fd, "wb") as f:
            for i in range(1, up["n"] + 1):
                with open(up["parts"][i][0], "rb") as g:
                    for b in iter(lambda: g.read(1 << 20), b""):
                        h.update(b)
                        n += len(b)
                        f.write(b)
                os.unlink(up["parts"][i][0])
        with self.hub.lock:
            self.hub.uploads.pop(q["uploadId"], None)
        if n != up["size"] or h.hexdigest() != up["oid"]:
            os.unlink(tmp)
            raise Fail(400, "assembled object does not match the announced oid/size")
        self.land(tmp, up["oid"])
        self.reply(200, {"success": True})

    def h_verify(self, tp, rid):
        d = self.json()
        if "sig" in self.q1:                 # given to who may upload; git-lfs sends no credentials here
            q = self.hub.check_sig("POST", self.upath, self.q1)
            r = self.store.repos.get(q["repo"])
            if not r or q["oid"] != d.get("oid"):
                raise Fail(403, "signature is for another object")
        else:
            r, t = self.repo(tp, rid)
            self.need_write(r, t)
        if not self.store.has_lfs(d["oid"]):
            raise Fail(404, "Object not found")
        if not self.store.has_lfs(d["oid"], d["size"]):
            raise Fail(422, "Object has another size")
        self.link_lfs(r, d["oid"])
        self.reply(200, {"message": "ok"})

    def link_lfs(self, r, sha):
        with r.lock:
            if sha not in r.meta["lfs"]:
                r.meta["lfs"].append(sha)
                self.store.save()

    def check_path(self, p):
        if not isinstance(p, str) or not p or p.startswith("/") or len(p) > 1000 or \
                any(s in ("", ".", "..", ".git") for s in p.rstrip("/").split("/")) or "\0" in p:
            raise Fail(400, f"Invalid path: {p!r}")
        return p

    def h_commit(self, tp, rid, rev):
        r, t = self.repo(tp, rid)
        create_pr = self.q1.get("create_pr") == "1"
        if not create_pr:
            t = self.need_write(r, t, rev)
        elif t is None or t["role"] == "read":
            raise Fail(403 if t else 401, "Forbidden: write token needed to open a pull request")
        head, files, ops = None, {}, []
        for line in self.read_body().splitlines():
            if not line.strip():
                continue
            try:
                d = json.loads(line)
                k, v = d["key"], d["value"]
            except (ValueError, KeyError):
                raise Fail(400, "malformed ndjson line")
            if k == "header":
                head = v
            elif k in ("file", "lfsFile", "deletedFile", "deletedFolder", "deletedEntry"):
                ops.append((k, v))
            else:
                raise Fail(400, f"unknown operation {k}")
        if not head or not head.get("summary"):
            raise Fail(400, '"summary" is required')
        if len(ops) > self.store.config["max_commit_ops"]:
            raise Fail(413, "too many operations in one commit")
        with r.lock:
            if SHA40.match(rev):
                raise Fail(400, "cannot commit on top of a detached commit")
            ref = rev if rev.startswith("refs/") else f"refs/heads/{rev}"
            tip = r.git.resolve(ref)
            if not tip:
                raise Fail(404, f"Invalid rev id: {rev}", "RevisionNotFound")
            parent = head.get("parentCommit")
            if parent and not create_pr:
                full = r.git.resolve(parent) or parent
                if full != tip:
                    raise Fail(412, "A commit has happened since. Please refresh and try again.")
            elif parent:
                tip = r.git.resolve(parent) or tip
            tree = {x[4]: x for x in r.git.ls(tip, trees=False)}
            adds, dels, shas = {}, set(), []
            for k, v in ops:
                p = self.check_path(v["path"])
                if k == "file":
                    data = base64.b64decode(v["content"]) if v.get("encoding") == "base64" else v["content"].encode()
                    if len(data) > self.store.config["max_regular_file"]:
                        raise Fail(400, f"{p}: regular files are limited; upload it as LFS")
                    if p == "README.md":
                        card, err = parse_front_matter(data.decode("utf-8", "replace"))
                        errs = [err] if err else check_card(card)[0]
                        if errs:
                            raise Fail(400, "Invalid metadata in README.md: " + "; ".join(errs))
                    adds[p] = r.git.write_blob(data)
                elif k == "lfsFile":
                    sha = v["oid"]
                    if v.get("algo") != "sha256" or not SHA64.match(sha):
                        raise Fail(400, f"{p}: bad lfs oid")
                    if not self.store.has_lfs(sha) and not self.materialize(sha):
                        raise Fail(400, f"{p}: LFS object {sha} was never uploaded")
                    if self.store.config["xet"] != "off" and sha in self.store.xet_by_sha:
                        self.link_lfs(r, sha)
                    size = os.path.getsize(self.store.lfs_path(sha))
                    if v.get("size") is not None and v["size"] != size:
                        raise Fail(400, f"{p}: LFS size {v['size']} does not match the stored {size}")
                    if sha not in r.meta["lfs"] and self.store.config["lfs_scope"] == "repo":
                        raise Fail(400, f"{p}: LFS object {sha} was not uploaded to this repo")
                    adds[p] = r.git.write_blob(pointer_bytes(sha, size))
                    shas.append(sha)
                elif k == "deletedFile":
                    if p not in tree and p not in adds:
                        raise Fail(404, f"A file with this name doesn't exist: {p}", "EntryNotFound")
                    adds.pop(p, None)
                    dels.add(p)
                else:
                    pre = p.rstrip("/") + "/"
                    hit = {x for x in tree if x.startswith(pre)} | ({p} & set(tree) if k == "deletedEntry" else set())
                    if not hit:
                        raise Fail(404, f"A folder with this name doesn't exist: {p}", "EntryNotFound")
                    dels |= hit
            dels -= set(adds)
            msg = head["summary"] + ("\n\n" + head["description"] if head.get("description") else "")
            for s in shas:
                self.link_lfs(r, s)
            pr_url = None
            if create_pr:
                disc = self.new_disc(r, t, head["summary"], head.get("description", ""), True, base=rev)
                ref, pr_url = f"refs/pr/{disc['num']}", f"{r.url(self.hub.base)}/discussions/{disc['num']}"
                r.git.run("update-ref", ref, tip)
            oid = r.git.commit(ref, tip, adds, dels, msg, t["user"])
            m = re.match(r"refs/pr/(\d+)$", ref)
            if m:
                self.event(self.disc(r, int(m.group(1))), t["user"], "commit", {"subject": head["summary"], "oid": oid})
            self.store.save()
        out = {"success": True, "commitOid": oid, "commitUrl": f"{r.url(self.hub.base)}/commit/{oid}",
               "hookOutput": ""}
        if pr_url:
            out["pullRequestUrl"] = pr_url
        self.reply(200, out)

    def h_commits(self, tp, rid, rev):
        r, t = self.repo(tp, rid)
        c = self.commit_of(r, rev)
        n, pg = int(self.q1.get("limit", self.store.config["commits_page"])), int(self.q1.get("p", 0))
        total = int(r.git.run("rev-list", "--count", c))
        raw = r.git.run("log", f"--skip={pg * n}", f"-{n}", "--format=%H%x00%s%x00%b%x00%an%x00%cI%x01", c).decode()
        out = []
        for rec in raw.split("\x01"):
            if rec.strip():
                i, s, b, a, d = rec.strip("\n").split("\0")
                e = {"id": i, "title": s, "message": b.strip(), "authors": [{"user": a, "avatar": ""}],
                     "date": git_date(d)}
                if "expand[]" in self.query:
                    e["formatted"] = {"title": s, "message": b.strip()}
                out.append(e)
        h = {"X-Total-Count": str(total)}
        if (pg + 1) * n < total:
            h["Link"] = f'<{self.hub.base}{self.upath}?{urlencode(dict(self.q1, p=pg + 1, limit=n))}>; rel="next"'
        self.reply(200, out, h)

    def h_refs(self, tp, rid):
        r, t = self.repo(tp, rid)
        out = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
        for line in r.git.run("for-each-ref", "--format=%(refname) %(objectname) %(*objectname)").decode().splitlines():
            f = line.split()
            kind = {"heads": "branches", "tags": "tags", "pr": "pullRequests", "convert": "converts"}.get(
                f[0].split("/")[1])
            if kind:
                out[kind].append({"name": f[0].split("/", 2)[2], "ref": f[0], "targetCommit": f[-1]})
        if "include_prs" not in self.q1:
            out.pop("pullRequests")
        self.reply(200, out)

    def h_branch(self, tp, rid, name):
        r, t = self.repo(tp, rid)
        self.need_write(r, t)
        ref = name if name.startswith("refs/") else f"refs/heads/{name}"
        with r.lock:
            if self.command == "DELETE":
                if name == "main":
                    raise Fail(403, "The default branch cannot be deleted")
                if not r.git.resolve(ref):
                    raise Fail(404, f"Invalid rev id: {name}", "RevisionNotFound")
                r.git.run("update-ref", "-d", ref)
                return self.reply(200, "OK")
            d = self.json()
            if r.git.resolve(ref) and not d.get("overwrite"):
                raise Fail(409, f"Reference already exists: {ref}")
            r.git.run("update-ref", ref, self.commit_of(r, d.get("startingPoint") or "main"))
        self.reply(200, "OK")

    def h_tag(self, tp, rid, x):
        r, t = self.repo(tp, rid)
        self.need_write(r, t)
        with r.lock:
            if self.command == "DELETE":
                if not r.git.resolve(f"refs/tags/{x}"):
                    raise Fail(404, f"Invalid rev id: {x}", "RevisionNotFound")
                r.git.run("update-ref", "-d", f"refs/tags/{x}")
                return self.reply(200, "OK")
            d = self.json()
            c = self.commit_of(r, x)
            if r.git.resolve(f"refs/tags/{d['tag']}"):
                raise Fail(409, f"Tag {d['tag']} already exists")
            if d.get("message"):
                r.git.run("-c", f"user.name={t['user']}", "-c", f"user.email={t['user']}@x", "tag", "-a", d["tag"], c,
                          "-m", d["message"])
            else:
                r.git.run("tag", d["tag"], c)
        self.reply(200, "OK")

    def h_squash(self, tp, rid, rev):
        r, t = self.repo(tp, rid)
        self.need_write(r, t)
        c = self.commit_of(r, rev)
        env = {f"GIT_{w}_{k}": v for w in ("AUTHOR", "COMMITTER") for k, v in (("NAME", t["user"]), ("EMAIL", "x@x"))}
        new = r.git.run("commit-tree", c + "^{tree}", input=self.json().get("message", "squash").encode(), env=env)
        r.git.run("update-ref", f"refs/heads/{rev}", new.decode().strip(), c)
        self.reply(200, "OK")

    def h_lfsfiles(self, tp, rid):
        r, t = self.repo(tp, rid)
        self.reply(200, [{"fileOid": s, "oid": s, "size": os.path.getsize(self.store.lfs_path(s)), "filename": s,
                          "pushedAt": iso(), "ref": "main"} for s in r.meta["lfs"] if self.store.has_lfs(s)])

    # ---------------------------------------------------------------- xet: token route and content-addressed store
    def h_xet(self, tp, rid, kind):
        r, t = self.repo(tp, rid)
        if kind == "xet-write-token" and self.q1.get("create_pr") != "1":
            self.need_write(r, t, self.parts[-1])
        elif kind == "xet-write-token" and (t is None or t["role"] == "read"):
            raise Fail(403 if t else 401, "Forbidden: write token needed")
        else:
            self.gate(r, t)
        if self.store.config["xet"] == "off":
            raise Fail(404, "Xet storage is not enabled on this server")
        exp, url = int(time.time()) + 900, self.hub.cdn
        tok = "xet_" + kind.split("-")[1] + "_" + uuid.uuid4().hex
        with self.hub.lock:
            self.hub.xet_tokens[tok] = (kind.split("-")[1], exp)
        self.reply(200, {"casUrl": url, "exp": exp, "accessToken": tok},
                   {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": tok, "X-Xet-Token-Expiration": str(exp)})

    def xet_auth(self, need):
        tok = self.headers.get("Authorization", "")[7:]
        scope, exp = self.hub.xet_tokens.get(tok, (None, 0))
        if scope is None or exp < time.time():
            raise Fail(401, "bad xet token")
        if need == "write" and scope != "write":
            raise Fail(403, "read-only xet token")

    def h_cas(self, kind, x):
        xd = self.store.xet_dir
        if kind == "telemetry":
            self.read_body()
            return self.reply(200, {})
        if kind == "xorb-data":
            self.hub.check_sig("GET", self.upath, self.q1)
            p = os.path.join(xd, "xorbs", x)
            return self.ranged(None, p, os.path.getsize(p), {"Accept-Ranges": "bytes"}, "application/octet-stream")
        if kind == "xorbs":
            self.xet_auth("write")
            p, new = os.path.join(xd, "xorbs", x), False
            data = self.read_body()
            chunk_table(data)                              # refuses a malformed body
            if not os.path.exists(p):
                new = True
                with open(p + ".tmp" + self.rid, "wb") as f:
                    f.write(data)
                os.replace(p + ".tmp" + self.rid, p)
            return self.reply(200, {"was_inserted": new})
        if kind == "shards":
            self.xet_auth("write")
            files, chunks = parse_shard(self.read_body())
            for f in files:
                for t in f["terms"]:
                    if not os.path.exists(os.path.join(xd, "xorbs", t[0])):
                        raise Fail(400, f"shard refers to an unknown xorb {t[0]}")
            fresh = 0
            for f in files:
                p = os.path.join(xd, "files", f["hash"])
                if not os.path.exists(p):
                    fresh += 1
                    with open(p + ".tmp" + self.rid, "w") as g:
                        json.dump(f, g)
                    os.replace(p + ".tmp" + self.rid, p)
                if f["sha256"]:
                    self.store.xet_by_sha[f["sha256"]] = f["hash"]
            sid = hashlib.sha256(self._body).hexdigest()
            with open(os.path.join(xd, "shards", sid), "wb") as g:
                g.write(self._body)
            for c in chunks:
                self.store.xet_chunks.setdefault(c, sid)
            return self.reply(200, {"result": 1 if fresh else 0})
        if kind == "chunks":
            self.xet_auth("read")
            sid = self.store.xet_chunks.get(x) if self.store.config["xet_global_dedup"] else None
            if not sid:
                raise Fail(404, "no such chunk")
            p = os.path.join(xd, "shards", sid)
            return self.reply(200, (p, 0, os.path.getsize(p)), ctype="application/octet-stream")
        if kind == "reconstructions":
            self.xet_auth("read")
            p = os.path.join(xd, "files", x)
            if not os.path.exists(p):
                raise Fail(404, "unknown file")
            return self.reply(*self.reconstruction(json.load(open(p))))
        self.h_404()

    def reconstruction(self, f):
        total = sum(t[1] for t in f["terms"])
        start, stop = 0, total
        m = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if m:
            start, stop = int(m.group(1)), min(total, int(m.group(2)) + 1 if m.group(2) else total)
            if start >= total:
                return 416, b"", {"Content-Range": f"bytes */{total}"}
        terms, info, pos, skip = [], {}, 0, None
        for xorb, size, a, b in f["terms"]:
            if pos + size > start and pos < stop:
                if skip is None:
                    skip = start - pos
                tab = self.store.xorb_table(xorb)
                # trim whole chunks that lie outside the wanted range
                while a < b and pos + tab[a][2] <= start:
                    pos, skip, size = pos + tab[a][2], skip - tab[a][2], size - tab[a][2]
                    a += 1
                end = pos + size
                while b > a and end - tab[b - 1][2] >= stop:
                    end -= tab[b - 1][2]
                    size -= tab[b - 1][2]
                    b -= 1
                terms.append({"hash": xorb, "unpacked_length": size, "range": {"start": a, "end": b}})
                info.setdefault(xorb, []).append({
                    "range": {"start": a, "end": b}, "url": self.hub.cdn + self.hub.sign("GET", f"/xorb-data/{xorb}"),
                    "url_range": {"start": tab[a][0], "end": tab[b - 1][1] - 1}})
                pos = end if end < stop else pos + size
            else:
                pos += size
        return 200, {"offset_into_first_range": skip or 0, "terms": terms, "fetch_info": info}

    def materialize(self, sha):
        """Assemble a xet-uploaded file into the LFS store, checking its sha256. True when present afterwards."""
        if self.store.has_lfs(sha):
            return True
        fh = self.store.xet_by_sha.get(sha)
        if not fh:
            return False
        import hf_xet
        f = json.load(open(os.path.join(self.store.xet_dir, "files", fh)))
        size = sum(t[1] for t in f["terms"])
        tok = "xet_internal_" + uuid.uuid4().hex
        self.hub.xet_tokens[tok] = ("write", int(time.time()) + 900)
        fd, tmp = tempfile.mkstemp(dir=os.path.join(self.store.root, "lfs", "tmp"))
        os.close(fd)
        with self.hub.xet_lock:
            ses = hf_xet.XetSession()
            with ses.new_file_download_group(endpoint=self.hub.cdn, token=tok,
                                             token_expiry_unix_secs=int(time.time()) + 900, token_refresh_url=None,
                                             token_refresh_headers=None, custom_headers={"x-hubserver-internal": "1"},
                                             progress_callback=None) as g:
                g.start_download_file(hf_xet.XetFileInfo(fh, size), tmp)
        h = hashlib.sha256()
        with open(tmp, "rb") as g:
            for b in iter(lambda: g.read(1 << 20), b""):
                h.update(b)
        if h.hexdigest() != sha:
            os.unlink(tmp)
            raise Fail(400, f"xet file {fh} assembles to {h.hexdigest()}, the shard announced {sha}")
        self.land(tmp, sha)
        return True

    # ---------------------------------------------------------------- discussions and pull requests
    def disc(self, r, num):
        for d in r.meta["discussions"]:
            if d["num"] == num:
                return d
        raise Fail(404, "Discussion not found")

    def event(self, d, user, typ, data):
        e = {"id": uuid.uuid4().hex[:24], "author": {"name": user, "type": "user"}, "createdAt": iso(), "type": typ,
             "data": data}
        d["events"].append(e)
        return e

    def new_disc(self, r, t, title, text, pr, base="main"):
        with r.lock:
            num = len(r.meta["discussions"]) + 1
            d = {"num": num, "title": title, "author": {"name": t["user"], "type": "user"}, "createdAt": iso(),
                 "status": "draft" if pr and base is None else "open", "isPullRequest": pr, "events": [],
                 "repo": {"name": r.id, "type": r.type}, "base": f"refs/heads/{base or 'main'}", "merge": None}
            r.meta["discussions"].append(d)
            self.event(d, t["user"], "comment", {"edited": False, "hidden": False,
                                                "latest": {"raw": text, "html": "", "updatedAt": iso(),
                                                           "author": {"name": t["user"]}}})
            self.store.save()
            return d

    def h_disc(self, tp, rid, rest):
        r, t = self.repo(tp, rid)
        if self.command == "GET" and not rest:
            ds = [d for d in reversed(r.meta["discussions"])
                  if self.q1.get("type", "all") in ("all", "pull_request" if d["isPullRequest"] else "discussion")
                  and self.q1.get("status", "all") in ("all", "open" if d["status"] in ("open", "draft") else "closed")
                  and self.q1.get("author", d["author"]["name"]) == d["author"]["name"]]
            n, pg = self.store.config["discussions_page"], int(self.q1.get("p", 0))
            return self.reply(200, {"discussions": [{k: d[k] for k in ("num", "title", "author", "createdAt", "status",
                                                                       "isPullRequest", "repo")}
                                                    for d in ds[pg * n:(pg + 1) * n]],
                                    "count": len(ds), "start": pg * n, "numClosedDiscussions": 0})
        if self.command == "GET":
            d = self.disc(r, int(rest[0]))
            out = {k: v for k, v in d.items() if k not in ("base", "merge")}
            if d["isPullRequest"]:
                out["changes"] = {"base": d["base"], **({"mergeCommitId": d["merge"]} if d["merge"] else {})}
                out["filesWithConflicts"] = []
                if "diff" in self.q1:
                    a, b = r.git.resolve(d["base"]), r.git.resolve(f"refs/pr/{d['num']}")
                    out["diff"] = r.git.run("diff", f"{a}...{b}").decode("utf-8", "replace") if b else ""
            return self.reply(200, out)
        if t is None:
            raise Fail(401, "Invalid username or password.")
        if t["role"] == "read":
            raise Fail(403, "Forbidden: token is read-only")
        b = self.json() or {}
        if not rest:
            d = self.new_disc(r, t, b["title"], b.get("description", ""), bool(b.get("pullRequest")), None)
            if d["isPullRequest"]:
                r.git.run("update-ref", f"refs/pr/{d['num']}", r.git.resolve("main"))
            return self.reply(200, {"num": d["num"], "pullRequest": d["isPullRequest"],
                                    "url": f"{r.url(self.hub.base)}/discussions/{d['num']}"})
        d, act = self.disc(r, int(rest[0])), rest[1]
        if act == "comment":
            e = self.event(d, t["user"], "comment", {"edited": False, "hidden": False,
                                                     "latest": {"raw": b["comment"], "html": "", "updatedAt": iso(),
                                                                "author": {"name": t["user"]}}})
            out = {"newMessage": e}
        elif act == "title":
            e = self.event(d, t["user"], "title-change", {"from": d["title"], "to": b["title"]})
            d["title"], out = b["title"], {"newTitle": e}
        elif act == "status":
            d["status"] = b["status"]
            out = {"newStatus": self.event(d, t["user"], "status-change", {"status": b["status"]})}
        elif act == "merge":
            self.need_write(r, t)
            with r.lock:
                if d["status"] not in ("open", "draft"):
                    raise Fail(409, "pull request is not open")
                base, tip = r.git.resolve(d["base"]), r.git.resolve(f"refs/pr/{d['num']}")
                p = r.git.run("merge-tree", "--write-tree", base, tip, check=False)
                if p.returncode:
                    raise Fail(409, "Conflicting files")
                env = {f"GIT_{w}_{k}": v for w in ("AUTHOR", "COMMITTER")
                       for k, v in (("NAME", t["user"]), ("EMAIL", "x@x"))}
                new = r.git.run("commit-tree", p.stdout.decode().split()[0], "-p", base, "-p", tip,
                                input=f"{d['title']} (#{d['num']})".encode(), env=env).decode().strip()
                r.git.run("update-ref", d["base"], new, base)
                d["status"], d["merge"] = "merged", new
                self.event(d, t["user"], "status-change", {"status": "merged"})
            out = {"status": "merged"}
        else:
            return self.h_404()
        self.store.save()
        self.reply(200, out)

    # ---------------------------------------------------------------- git smart http
    def h_git(self, tp, rid, tail):
        svc = self.q1.get("service") or tail
        write = svc == "git-receive-pack"
        try:
            r, t = self.repo(tp, rid)
            if write:
                self.need_write(r, t)
        except Fail as e:
            if e.status == 401:
                e.headers["WWW-Authenticate"] = 'Basic realm="hub"'
            raise
        self.gate(r, t)
        body = self.read_body()
        env = {**r.git.env, "GIT_PROJECT_ROOT": os.path.dirname(r.git.path), "GIT_HTTP_EXPORT_ALL": "1",
               "PATH_INFO": "/" + os.path.basename(r.git.path) + "/" + tail, "REQUEST_METHOD": self.command,
               "QUERY_STRING": urlsplit(self.path).query, "CONTENT_TYPE": self.headers.get("Content-Type", ""),
               "CONTENT_LENGTH": str(len(body)), "REMOTE_ADDR": self.client_address[0],
               "REMOTE_USER": t["user"] if t else "",
               "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
               "GIT_PROTOCOL": self.headers.get("Git-Protocol", "")}
        with r.lock if write else tempfile.SpooledTemporaryFile():
            p = subprocess.run(["git", "http-backend"], input=body, stdout=subprocess.PIPE, env=env)
        head, _, out = p.stdout.partition(b"\r\n\r\n")
        status, h = 200, {}
        for line in head.decode().split("\r\n"):
            k, _, v = line.partition(": ")
            if k.lower() == "status":
                status = int(v.split()[0])
            elif k:
                h[k] = v
        self.reply(status, out, h)

    # ---------------------------------------------------------------- admin
    def admin(self):
        hub, p, m = self.hub, self.parts[1:], self.command
        a = p[0] if p else ""
        if a == "health":
            return self.reply(200, {"ok": True, "base": hub.base, "cdn": hub.cdn, "pid": os.getpid()})
        if a == "stats":
            with hub.lock:
                return self.reply(200, {"routes": hub.stats, "auth_leaks": hub.auth_leaks,
                                        "max_inflight": hub.max_inflight,
                                        "total_requests": sum(s["requests"] for s in hub.stats.values()),
                                        "total_bytes_in": sum(s["bytes_in"] for s in hub.stats.values()),
                                        "total_bytes_out": sum(s["bytes_out"] for s in hub.stats.values()),
                                        "faults": [{**f.d, "hits": f.hits, "left": f.left} for f in hub.faults]})
        if a == "log":
            since, route = int(self.q1.get("since", 0)), self.q1.get("route", "*")
            with hub.lock:
                return self.reply(200, [e for e in hub.log if e["seq"] > since and fnmatch.fnmatch(e["route"], route)])
        if a == "state":
            return self.reply(200, {"repos": {k: r.meta for k, r in self.store.repos.items()}})
        if a == "config":
            if m == "POST":
                d = self.json()
                bad = set(d) - set(CONFIG)
                if bad:
                    raise Fail(400, f"unknown config keys {sorted(bad)}")
                self.store.config.update(d)
            return self.reply(200, self.store.config)
        if a == "tokens" and m == "POST":
            self.store.tokens.update(self.json())
            self.store.save()
            return self.reply(200, {"tokens": len(self.store.tokens)})
        if a == "faults":
            with hub.lock:
                if m == "DELETE":
                    hub.faults = []
                elif m == "POST":
                    d = self.json()
                    hub.faults += [Fault(x) for x in (d if isinstance(d, list) else [d])]
            return self.reply(200, {"faults": [{**f.d, "hits": f.hits, "left": f.left} for f in hub.faults]})
        if a == "ratelimit" and m == "POST":
            with hub.lock:
                hub.ratelimits, hub.windows = self.json(), {}
            return self.reply(200, hub.ratelimits)
        if a == "access" and m == "POST":
            d = self.json()
            lst = self.store.repos[d["repo"]].meta["access"]
            (lst.append if d.get("granted", True) else lst.remove)(d["user"])
            self.store.save()
            return self.reply(200, {"access": lst})
        if a == "disable" and m == "POST":
            d = self.json()
            self.store.repos[d["repo"]].meta["disabled"] = d.get("disabled", True)
            return self.reply(200, {})
        if a == "corrupt-lfs" and m == "POST":
            f = self.store.lfs_path(self.json()["sha256"])
            with open(f, "r+b") as g:
                b = g.read(1)
                g.seek(0)
                g.write(bytes([b[0] ^ 0xFF]))
            return self.reply(200, {})
        if a == "reset" and m == "POST":
            d = self.json()
            with hub.lock:
                if d.get("stats", True):
                    hub.reset_stats()
                if d.get("log", True):
                    hub.log.clear()
                if d.get("faults", True):
                    hub.faults, hub.ratelimits, hub.windows = [], {}, {}
                if d.get("repos"):
                    self.store.repos, self.store.moved = {}, {}
                    for sub in ("repos", "lfs"):     # xet chunks stay: clients remember which ones the store holds
                        shutil.rmtree(os.path.join(self.store.root, sub), ignore_errors=True)
                    os.makedirs(os.path.join(self.store.root, "lfs", "tmp"), exist_ok=True)
                    self.store.save()
                if d.get("config"):
                    self.store.config = dict(CONFIG)
            return self.reply(200, {"ok": True})
        raise Fail(404, "no such admin route")


def serve(root, host="127.0.0.1", port=0, cdn_port=0, seed=None, ready_file=None):
    """Start both listeners in background threads; returns (hub, base url). Usable from a pytest fixture."""
    hub = Hub(root)
    if seed:
        d = json.load(open(seed))
        hub.store.tokens.update(d.get("tokens", {}))
        hub.store.config.update(d.get("config", {}))
    a, b = Server((host, port), hub, False), Server((host, cdn_port), hub, True)
    hub.base, hub.cdn = f"http://{host}:{a.server_port}", f"http://{host}:{b.server_port}"
    hub.servers = (a, b)
    for s in hub.servers:
        threading.Thread(target=s.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    if ready_file:
        with open(ready_file + ".tmp", "w") as f:
            json.dump({"base": hub.base, "cdn": hub.cdn, "pid": os.getpid()}, f)
        os.replace(ready_file + ".tmp", ready_file)
    return hub, hub.base


def main():
    ap = argparse.ArgumentParser(description="loopback Hugging Face Hub stand-in")
    ap.add_argument("--root", required=True)
    ap.add_argument("--host", default="127.0.0.1")
    ap.add_argument("--port", type=int, default=0)
    ap.add_argument("--cdn-port", type=int, default=0)
    ap.add_argument("--seed")
    ap.add_argument("--ready-file")
    a = ap.parse_args()
    hub, base = serve(a.root, a.host, a.port, a.cdn_port, a.seed, a.ready_file)
    print(f"hub {base}   object store {hub.cdn}   root {hub.store.root}", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()

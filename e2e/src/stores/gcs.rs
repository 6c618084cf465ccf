//! Google Cloud Storage, as far as pools use it: a stand-in in memory.
//!
//! The emulators that there are speak Google's JSON interface, `object_store` its XML one. This one is written after
//! Google's description of the latter (cloud.google.com/storage/docs/xml-api) and refuses what it does not know. So it
//! shows that what we ask is what that describes, and that we understand the answers; not how Google's service behaves.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    ops::Bound,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use jiff::Timestamp;

use crate::{Error, Result};

use super::{BUCKET, Credentials, Location, Store};

/// Objects in an answer to a list, fewer than Google's thousand so that small tests get several.
const PAGE: usize = 10;
/// A client that says nothing for so long is gone.
const IDLE: Duration = Duration::from_secs(60);

/// The stand-in. It ends with this value.
#[derive(Debug)]
pub struct Gcs {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    listens: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Bucket {
    objects: Mutex<BTreeMap<String, Object>>,
    generations: AtomicU64,
}

#[derive(Debug, Clone)]
struct Object {
    body: Arc<[u8]>,
    generation: u64,
    modified: Timestamp,
}

#[derive(Debug)]
struct Request {
    method: String,
    /// Of the object; none asks for the bucket.
    key: Option<String>,
    query: BTreeMap<String, String>,
    /// By their names in lower case.
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Gcs {
    /// Starts it.
    pub fn start() -> Result<Self> {
        let failed = |source| Error::System { what: "listening for the stand-in of Google's store", source };
        let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (ended, bucket) = (Arc::new(AtomicBool::new(false)), Arc::new(Bucket::default()));
        let is_over = Arc::clone(&ended);
        let listens = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(|stream| stream.ok()) {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                let bucket = Arc::clone(&bucket);
                // A connection that breaks is its client's concern.
                std::thread::spawn(move || drop(bucket.serve(&stream)));
            }
        });
        Ok(Gcs { address, ended, listens: Some(listens) })
    }
}

impl Drop for Gcs {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // So that it looks; if nobody listens, it is over already.
        let _ = TcpStream::connect(self.address);
        if let Some(listens) = self.listens.take() {
            // It does nothing that panics.
            let _ = listens.join();
        }
    }
}

impl Store for Gcs {
    fn name(&self) -> &'static str {
        "gcs"
    }

    fn location(&self, prefix: &str) -> Location {
        let account = serde_json::json!({
            "private_key": "", "private_key_id": "", "client_email": "", "disable_oauth": true,
        });
        Location {
            url: format!("gs://{BUCKET}/{prefix}"),
            endpoint: Some(format!("http://{}", self.address)),
            region: None,
            allow_http: true,
            credentials: Some(Credentials::Google { service_account_json: account.to_string() }),
        }
    }
}

impl Bucket {
    fn serve(&self, stream: &TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(IDLE))?;
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        while let Some(request) = Request::read(&mut reader)? {
            let is_head = request.method == "HEAD";
            self.answer(&request).write(is_head, stream)?;
        }
        Ok(())
    }

    fn objects(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Object>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, request: &Request) -> Answer {
        match (request.method.as_str(), &request.key) {
            ("PUT", Some(key)) if request.query.is_empty() => self.put(key, request),
            ("GET" | "HEAD", Some(key)) if request.query.is_empty() => self.get(key, request),
            ("DELETE", Some(key)) if request.query.is_empty() => match self.objects().remove(key) {
                Some(_) => Answer::empty("204 No Content"),
                None => Answer::error("404 Not Found", "NoSuchKey"),
            },
            ("GET", None) => self.list(request),
            _ => Answer::error("501 Not Implemented", "NotImplemented"),
        }
    }

    /// "If you set the header to 0, the request only succeeds if there are no live versions of the object."
    fn put(&self, key: &str, request: &Request) -> Answer {
        if request.headers.get("x-goog-if-generation-match").map(String::as_str) != Some("0") {
            return Answer::error("400 Bad Request", "an object would be overwritten");
        }
        let mut objects = self.objects();
        if objects.contains_key(key) {
            return Answer::error("412 Precondition Failed", "PreconditionFailed");
        }
        let object = Object {
            body: request.body.as_slice().into(),
            generation: self.generations.fetch_add(1, Ordering::Relaxed) + 1,
            modified: Timestamp::now(),
        };
        let headers = object.headers();
        objects.insert(key.to_owned(), object);
        Answer { status: "200 OK", headers, body: Vec::new() }
    }

    fn get(&self, key: &str, request: &Request) -> Answer {
        let Some(object) = self.objects().get(key).cloned() else {
            return Answer::error("404 Not Found", "NoSuchKey");
        };
        let (mut headers, len) = (object.headers(), object.body.len());
        let Some(range) = request.headers.get("range") else {
            return Answer { status: "200 OK", headers, body: object.body.to_vec() };
        };
        let range = range.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
        let range = range.and_then(|(first, last)| Some((first.parse().ok()?, last.parse::<usize>().ok()?)));
        match range {
            Some((first, last)) if first <= last && first < len => {
                let end = len.min(last + 1);
                headers.push(("Content-Range", format!("bytes {first}-{}/{len}", end - 1)));
                Answer { status: "206 Partial Content", headers, body: object.body[first..end].to_vec() }
            }
            Some(_) => Answer::error("416 Requested Range Not Satisfiable", "InvalidRange"),
            None => Answer::error("501 Not Implemented", "NotImplemented"),
        }
    }

    fn list(&self, request: &Request) -> Answer {
        let known = ["list-type", "prefix", "start-after", "continuation-token", "max-keys"];
        let asked = |name: &str| request.query.get(name).map(String::as_str);
        if asked("list-type") != Some("2") || request.query.keys().any(|name| !known.contains(&name.as_str()))
        {
            return Answer::error("501 Not Implemented", "NotImplemented");
        }
        let prefix = asked("prefix").unwrap_or_default();
        // The token says more than where the whole list begins.
        let after = asked("continuation-token").or(asked("start-after")).unwrap_or_default().to_owned();
        let limit = asked("max-keys").and_then(|limit| limit.parse().ok()).unwrap_or(PAGE).min(PAGE);
        let objects = self.objects();
        let mut found = objects
            .range((Bound::Excluded(after), Bound::Unbounded))
            .filter(|(key, _)| key.starts_with(prefix));
        let page: Vec<_> = found.by_ref().take(limit).collect();
        let is_truncated = found.next().is_some();
        let mut xml = format!(
            "<?xml version='1.0' encoding='UTF-8'?><ListBucketResult><Name>{BUCKET}</Name>\
             <KeyCount>{}</KeyCount><IsTruncated>{is_truncated}</IsTruncated>",
            page.len()
        );
        if let Some((last, _)) = page.last().filter(|_| is_truncated) {
            xml += &format!("<NextContinuationToken>{}</NextContinuationToken>", escaped(last));
        }
        for (key, object) in page {
            xml += &format!(
                "<Contents><Key>{}</Key><Generation>{}</Generation><LastModified>{}</LastModified>\
                 <ETag>\"{}\"</ETag><Size>{}</Size></Contents>",
                escaped(key),
                object.generation,
                shown(object.modified),
                object.generation,
                object.body.len()
            );
        }
        xml += "</ListBucketResult>";
        Answer {
            status: "200 OK",
            headers: vec![("Content-Type", "application/xml".into())],
            body: xml.into(),
        }
    }
}

impl Object {
    fn headers(&self) -> Vec<(&'static str, String)> {
        vec![
            ("ETag", format!("\"{}\"", self.generation)),
            ("Last-Modified", self.modified.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()),
            ("x-goog-generation", self.generation.to_string()),
        ]
    }
}

impl Request {
    /// The next one; none if the client has closed the connection.
    fn read(reader: &mut impl BufRead) -> std::io::Result<Option<Self>> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path = path.strip_prefix(&format!("/{BUCKET}")).unwrap_or_default();
        let query = query.split('&').filter_map(|pair| pair.split_once('='));
        let mut request = Self {
            method: method.to_owned(),
            key: path.strip_prefix('/').filter(|key| !key.is_empty()).map(decoded),
            query: query.map(|(name, value)| (decoded(name), decoded(value))).collect(),
            headers: BTreeMap::new(),
            body: Vec::new(),
        };
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            request.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let len = request.headers.get("content-length").and_then(|len| len.parse().ok());
        reader.take(len.unwrap_or(0)).read_to_end(&mut request.body)?;
        Ok(Some(request))
    }
}

impl Answer {
    fn empty(status: &'static str) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    fn error(status: &'static str, code: &str) -> Self {
        let body = format!("<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code></Error>");
        Self { body: body.into(), ..Self::empty(status) }
    }

    fn write(&self, is_head: bool, mut to: impl Write) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {}\r\nContent-Length: {}\r\n", self.status, self.body.len());
        self.headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        to.write_all(format!("{head}\r\n").as_bytes())?;
        if is_head { Ok(()) } else { to.write_all(&self.body) }
    }
}

/// Without the escapes of a URL.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let hex = |digit: Option<u8>| (digit? as char).to_digit(16);
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => (hex(rest.next()).unwrap_or(0) * 16 + hex(rest.next()).unwrap_or(0)) as u8,
            byte => byte,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// As text in XML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// As Google's lists have it.
fn shown(time: Timestamp) -> impl std::fmt::Display {
    time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| Timestamp::from_second(seconds).expect("a time of our age");
        let shown = |seconds| shown(at(seconds)).to_string();
        assert_eq!(shown(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(shown(951_827_696), "2000-02-29T12:34:56.000Z");
        assert_eq!(shown(1_795_910_399), "2026-11-28T23:59:59.000Z");
        let object = Object { body: [].into(), generation: 1, modified: at(951_827_696) };
        assert_eq!(object.headers()[1].1, "Tue, 29 Feb 2000 12:34:56 GMT");
    }
}

//! A store that fails on purpose: at a chosen call, for tests, or for a while, for `launch --chaos`.
//!
//! ```
//! # use storage::faulty::{Call, Fault, Faults, Rule};
//! // The acknowledgement of the second write below manifests/ is lost; everything else works.
//! let faults = Faults::new([Rule::new(Call::Put, "manifests/", Fault::LoseAnswer).nth(2)]);
//! ```

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt, TryStreamExt, once};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// A single put.
    Put,
    /// One part of a large put.
    Part,
    /// The end of a large put, which makes it visible.
    Complete,
    /// A read.
    Get,
    /// A question for size and time.
    Head,
    /// A deletion.
    Delete,
    /// A listing.
    List,
}

impl Call {
    const ALL: [Self; 7] = [Self::Put, Self::Part, Self::Complete, Self::Get, Self::Head, Self::Delete, Self::List];
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request has no effect and fails as a server does that is overloaded.
    Fail,
    /// The request has no effect and is not allowed.
    Deny,
    /// The object is not there.
    Vanish,
    /// The request has its effect, and then fails.
    LoseAnswer,
    /// The request has its effect, and says that something exists already (as a repetition inside the client would).
    ClaimExists,
    /// The request takes this much longer.
    Delay(Duration),
    /// The request never ends.
    Hang,
    /// A read ends after this many bytes.
    Truncate(usize),
    /// A read has one bit flipped, in this byte (counted round).
    FlipBit(usize),
    /// A create-only put overwrites.
    IgnoreCreate,
}

/// A fault and when it happens: by default at every matching call.
#[derive(Clone, Debug)]
pub struct Rule {
    call: Call,
    contains: String,
    fault: Fault,
    first: u64,
    times: u64,
    seen: u64,
}

impl Rule {
    /// At every `call` for an object whose key contains `contains`.
    #[must_use]
    pub fn new(call: Call, contains: &str, fault: Fault) -> Self {
        Self { call, contains: contains.to_owned(), fault, first: 1, times: u64::MAX, seen: 0 }
    }

    /// Only at the `n`-th, counted from 1.
    #[must_use]
    pub fn nth(self, n: u64) -> Self {
        Self { first: n, times: 1, ..self }
    }

    /// Only at the first `n`.
    #[must_use]
    pub fn first(self, n: u64) -> Self {
        Self { first: 1, times: n, ..self }
    }
}

/// Rules, shared by every store that they were given to. By default there are none.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    /// What was called, where somebody asks for it.
    calls: Option<Vec<(Call, String)>>,
}

impl Faults {
    /// A plan of `rules`, and a record of what is called; the first that matches a call decides.
    #[must_use]
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Self {
        Self(Arc::new(Mutex::new(State { rules: rules.into_iter().collect(), calls: Some(Vec::new()) })))
    }

    /// From now on every call fails.
    pub fn strike(&self) {
        self.state().rules = Call::ALL.map(|call| Rule::new(call, "", Fault::Fail)).into();
    }

    /// From now on none does.
    pub fn heal(&self) {
        self.state().rules.clear();
    }

    /// How many `call`s there were for objects whose key contains `contains`.
    #[must_use]
    pub fn count(&self, call: Call, contains: &str) -> usize {
        self.state().calls.iter().flatten().filter(|(c, path)| *c == call && path.contains(contains)).count()
    }

    pub(crate) fn wrap(&self, inner: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        Arc::new(Faulty { inner, faults: self.clone() })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a call and finds its fault.
    fn meet(&self, call: Call, path: &str) -> Option<Fault> {
        let mut state = self.state();
        if let Some(calls) = &mut state.calls {
            calls.push((call, path.to_owned()));
        }
        let mut fault = None;
        for rule in state.rules.iter_mut().filter(|rule| rule.call == call && path.contains(&rule.contains)) {
            rule.seen += 1;
            if fault.is_none() && rule.seen >= rule.first && rule.seen - rule.first < rule.times {
                fault = Some(rule.fault);
            }
        }
        fault
    }
}

/// Runs `work` with `fault` around it.
async fn suffer<T>(fault: Option<Fault>, path: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let failed = |what: &str| Error::Generic { store: "faulty", source: what.into() };
    match fault {
        Some(Fault::Fail) => Err(failed("503, on purpose")),
        Some(Fault::Deny) => Err(Error::PermissionDenied { path: path.into(), source: "on purpose".into() }),
        Some(Fault::Vanish) => Err(Error::NotFound { path: path.into(), source: "on purpose".into() }),
        Some(Fault::LoseAnswer) => {
            work.await?;
            Err(failed("connection closed before the answer, on purpose"))
        }
        Some(Fault::ClaimExists) => {
            work.await?;
            Err(Error::AlreadyExists { path: path.into(), source: "on purpose".into() })
        }
        Some(Fault::Delay(time)) => {
            tokio::time::sleep(time).await;
            work.await
        }
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Truncate(_) | Fault::FlipBit(_) | Fault::IgnoreCreate) | None => work.await,
    }
}

#[derive(Debug)]
struct Faulty {
    inner: Arc<dyn ObjectStore>,
    faults: Faults,
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, mut opts: PutOptions) -> Result<PutResult> {
        let fault = self.faults.meet(Call::Put, location.as_ref());
        if fault == Some(Fault::IgnoreCreate) {
            opts.mode = PutMode::Overwrite;
        }
        suffer(fault, location.as_ref(), self.inner.put_opts(location, payload, opts)).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(location, opts).await?;
        Ok(Box::new(FaultyUpload { inner, path: location.to_string(), faults: self.faults.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let call = if options.head { Call::Head } else { Call::Get };
        let fault = self.faults.meet(call, location.as_ref());
        let result = suffer(fault, location.as_ref(), self.inner.get_opts(location, options)).await?;
        let alter: fn(&mut Vec<u8>, usize) = match fault {
            Some(Fault::Truncate(_)) => |bytes, keep| bytes.truncate(keep),
            Some(Fault::FlipBit(_)) => |bytes, at| {
                let len = bytes.len().max(1);
                bytes.iter_mut().skip(at % len).take(1).for_each(|byte| *byte ^= 1);
            },
            _ => return Ok(result),
        };
        let (Some(Fault::Truncate(at)) | Some(Fault::FlipBit(at))) = fault else { return Ok(result) };
        let (meta, range) = (result.meta.clone(), result.range.clone());
        let (attributes, extensions) = (result.attributes.clone(), result.extensions.clone());
        let mut bytes = result.bytes().await?.to_vec();
        alter(&mut bytes, at);
        let payload = GetResultPayload::Stream(once(async move { Ok(Bytes::from(bytes)) }).boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, faults) = (self.inner.clone(), self.faults.clone());
        let one = move |location: Result<Path>| {
            let (inner, faults) = (inner.clone(), faults.clone());
            async move {
                let location = location?;
                let fault = faults.meet(Call::Delete, location.as_ref());
                let target = location.clone();
                let work = async move {
                    let mut deleted = inner.delete_stream(once(async move { Ok(target) }).boxed());
                    deleted.next().await.unwrap_or(Ok(Path::default()))
                };
                suffer(fault, location.as_ref(), work).await
            }
        };
        locations.then(one).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let path = prefix.map(Path::to_string).unwrap_or_default();
        let fault = self.faults.meet(Call::List, &path);
        let inner = self.inner.list(prefix);
        once(async move { suffer(fault, &path, async { Ok(inner) }).await }).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let path = prefix.map(Path::to_string).unwrap_or_default();
        let fault = self.faults.meet(Call::List, &path);
        suffer(fault, &path, self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    path: String,
    faults: Faults,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let fault = self.faults.meet(Call::Part, &self.path);
        let (path, part) = (self.path.clone(), self.inner.put_part(data));
        Box::pin(async move { suffer(fault, &path, part).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let fault = self.faults.meet(Call::Complete, &self.path);
        suffer(fault, &self.path, self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

//! Follows one kind: lists it, then watches it, again and again.

use super::connect::{Connection, Server};
use super::health::{Health, News};
use super::lines::Lines;
use super::pace::{Pace, stray};
use super::trouble::{Trouble, words};
use super::{Closed, Resource, Sink};
use crate::identity::kubernetes::{self, Event, Status, Unreadable};
use crate::identity::object::{Change, Object, Source};
use http::{Request, Response, header};
use http_body_util::BodyExt;
use kube::client::Body;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Objects on a page of a list.
const PAGE: usize = 500;
/// Bytes of a page. Five hundred pods have about five million.
const PAGE_BYTES: usize = 64 << 20;
/// Bytes of a line of a watch: one object, of which etcd holds no more than 1.5 MiB.
const LINE_BYTES: usize = 16 << 20;
/// Bytes of a refusal.
const REFUSAL_BYTES: usize = 64 << 10;
/// Objects of a kind.
const OBJECTS: usize = 1_000_000;
/// How much longer the pause is before what a cluster may be without is asked for again.
const RARELY: u32 = 20;
/// Refusals in a row, after which what is known is asked for anew, not the changes to it.
const STUBBORN: u32 = 3;

/// Why a round ended.
enum Stop {
    Closed,
    Trouble(Trouble),
}

impl From<Closed> for Stop {
    fn from(Closed: Closed) -> Self {
        Self::Closed
    }
}

impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

/// One kind of object, and how far it is known.
pub(super) struct Follower<'a> {
    server: &'a Server,
    health: &'a Mutex<Health>,
    resource: &'static Resource,
    sink: &'a Sink,
    /// The version up to which all is known; `None` before the list is complete.
    version: Option<String>,
    /// Whether the server may have streaming lists (Kubernetes 1.32 and later; before, as an option).
    streaming: bool,
    /// Objects that could not be read, and what was wrong with the first.
    unreadable: Option<(u64, String)>,
    unreadable_said: bool,
}

impl<'a> Follower<'a> {
    pub(super) fn new(
        server: &'a Server,
        health: &'a Mutex<Health>,
        resource: &'static Resource,
        sink: &'a Sink,
    ) -> Self {
        Self {
            server,
            health,
            resource,
            sink,
            version: None,
            streaming: true,
            unreadable: None,
            unreadable_said: false,
        }
    }

    /// Follows it until nobody reads any more.
    pub(super) async fn run(mut self) -> Result<Infallible, Closed> {
        let timing = *self.server.timing();
        let (mut pace, mut failures, mut refusals) = (Pace::new(&timing), 0_u32, 0);
        let mut url = String::new();
        loop {
            let begun = Instant::now();
            let ended = match self.server.connection().await {
                Ok(connection) => {
                    url.clone_from(&connection.url);
                    let ended = self.round(&connection).await;
                    if matches!(&ended, Err(Stop::Trouble(trouble)) if !trouble.is_of_one_kind()) {
                        self.server.forget(&connection).await;
                    }
                    ended
                }
                Err(trouble) => Err(Stop::Trouble(trouble)),
            };
            let trouble = match ended {
                Err(Stop::Closed) => return Err(Closed),
                // A watch has ended, as they do. One that does at once, each time, is asked for less and less often.
                Ok(()) => {
                    (failures, refusals) = (0, 0);
                    sleep(pace.after(begun.elapsed())).await;
                    continue;
                }
                Err(Stop::Trouble(trouble)) => trouble,
            };
            failures = failures.saturating_add(1);
            match &trouble {
                // A connection that was kept may have ended just then: that is no trouble yet.
                Trouble::Cut(_) if failures == 1 => {}
                Trouble::Gone if refusals < STUBBORN => self.version = None,
                Trouble::Unsupported(_) if self.version.is_none() && self.streaming => {
                    self.streaming = false;
                    continue;
                }
                _ if self.resource.optional && trouble.is_of_one_kind() => {
                    let answered = self.health().answered(self.resource.kind, false);
                    if answered.back {
                        self.sink.note(back_again(&url)).await?;
                    }
                    self.without(&trouble).await?;
                    sleep(timing.retry_most * RARELY).await;
                    continue;
                }
                _ => self.tell(&trouble, &url).await?,
            }
            refusals = if trouble.is_answer() { refusals + 1 } else { 0 };
            if refusals >= STUBBORN {
                self.version = None;
            }
            let pause = pace.after(begun.elapsed());
            sleep(if trouble.is_of_one_kind() { timing.retry_most } else { pause }).await;
        }
    }

    /// One list, if it is needed, and one watch, up to its end.
    async fn round(&mut self, connection: &Connection) -> Result<(), Stop> {
        match (&self.version, self.streaming) {
            (None, true) => return self.stream(connection).await,
            (None, false) => self.pages(connection).await?,
            (Some(_), _) => {}
        }
        self.stream(connection).await
    }

    /// The list, page by page.
    async fn pages(&mut self, connection: &Connection) -> Result<(), Stop> {
        let timing = *self.server.timing();
        self.set(Change::Begin(self.resource.kind)).await?;
        let (mut next, mut objects) = (None::<String>, 0);
        loop {
            let query = match &next {
                None => format!("limit={PAGE}"),
                Some(next) => format!("limit={PAGE}&continue={}", encode(next)),
            };
            let page = async {
                let answer = self.ask(connection, &query, true).await?;
                whole(answer.into_body(), PAGE_BYTES, timing.answer).await
            };
            let page = timeout(timing.list, page).await.unwrap_or(Err(Trouble::Silent(timing.list)))?;
            let list = kubernetes::list(&page).map_err(|error| Trouble::Nonsense(error.to_string()))?;
            for object in list.objects(self.resource.kind) {
                objects += 1;
                self.object(object.map(|found| found.object)).await?;
            }
            self.answered(connection).await?;
            // A page without objects that is not the last counts, too, or a server could send them for ever.
            objects += 1;
            if objects > OBJECTS {
                return Err(Trouble::TooMuch("more than a million objects").into());
            }
            match list.next {
                Some(following) => next = Some(following),
                None => return self.listed(list.version).await,
            }
        }
    }

    /// A watch, from the version that is known. Where none is, a streaming list and then the watch.
    async fn stream(&mut self, connection: &Connection) -> Result<(), Stop> {
        let timing = *self.server.timing();
        let listing = self.version.is_none();
        // Zero would stand for the server's own default.
        let watch = Duration::from_secs(stray(timing.watch).as_secs().max(1));
        let mut query = format!("watch=true&allowWatchBookmarks=true&timeoutSeconds={}", watch.as_secs());
        match &self.version {
            Some(version) => write!(query, "&resourceVersion={}", encode(version)),
            None => {
                write!(query, "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=")
            }
        }
        .unwrap_or_default();
        let begun = Instant::now();
        let mut body = self.ask(connection, &query, false).await?.into_body();
        if listing {
            self.set(Change::Begin(self.resource.kind)).await?;
        } else {
            self.answered(connection).await?;
        }
        let (mut lines, mut objects) = (Lines::new(LINE_BYTES), 0);
        loop {
            let listing = self.version.is_none();
            let until = begun + if listing { timing.list } else { watch + timing.margin };
            let quiet = if listing { until.min(Instant::now() + timing.answer) } else { until };
            let piece = match timeout_at(quiet, body.frame()).await {
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
                // Without a list there is nothing to go on from; with it the next watch does.
                Ok(Some(Err(error))) if listing => return Err(Trouble::of_client(&error).into()),
                // An older server may take the question for that of a common watch, and end it, or say nothing more.
                Ok(None) if listing => {
                    let message = "the list has no end".to_owned();
                    return Err(Trouble::Unsupported(Status { message, ..Status::default() }).into());
                }
                Err(_) if listing => {
                    self.streaming = false;
                    return Err(Trouble::Silent(timing.answer).into());
                }
                Ok(None | Some(Err(_))) | Err(_) => return Ok(()),
            };
            lines.push(&piece).map_err(|_| Trouble::TooMuch("an object of more than 16 MiB"))?;
            while let Some(line) = lines.next() {
                self.event(connection, line).await?;
                objects += usize::from(self.version.is_none());
                if objects > OBJECTS {
                    return Err(Trouble::TooMuch("more than a million objects").into());
                }
            }
        }
    }

    /// One line of a watch.
    async fn event(&mut self, connection: &Connection, line: &[u8]) -> Result<(), Stop> {
        let kind = self.resource.kind;
        let event = kubernetes::event(kind, line).map_err(|error| Trouble::Nonsense(error.to_string()))?;
        let version = match event {
            Event::Set(found) => {
                self.object(Ok(found.object)).await?;
                Some(found.version)
            }
            Event::Unreadable(error, version) => {
                self.object(Err(error)).await?;
                version
            }
            Event::Delete { key, version } => {
                self.set(Change::Delete(kind, key)).await?;
                Some(version)
            }
            Event::Bookmark { version, listed: true } if self.version.is_none() => {
                self.answered(connection).await?;
                self.listed(version).await?;
                None
            }
            Event::Bookmark { version, .. } => Some(version),
            Event::Error(status) => return Err(Trouble::of_event(status).into()),
            Event::Unknown => None,
        };
        // A streaming list comes in no order of versions: only its end is one.
        if let (Some(known), Some(version)) =
            (&mut self.version, version.filter(|version| !version.is_empty()))
        {
            *known = version;
        }
        Ok(())
    }

    /// The list is complete.
    async fn listed(&mut self, version: String) -> Result<(), Stop> {
        if version.is_empty() {
            return Err(Trouble::Nonsense("a list without a version".to_owned()).into());
        }
        self.set(Change::End(self.resource.kind)).await?;
        self.version = Some(version);
        self.tell_unreadable().await?;
        Ok(())
    }

    /// There are no such objects here, as far as can be known: if the server has no such kind, it is known that there are
    /// none.
    async fn without(&mut self, trouble: &Trouble) -> Result<(), Closed> {
        self.version = None;
        if matches!(trouble, Trouble::Missing(_)) {
            self.set(Change::Begin(self.resource.kind)).await?;
            self.set(Change::End(self.resource.kind)).await?;
        }
        Ok(())
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn set(&self, change: Change) -> Result<(), Closed> {
        self.sink.change(Source::Api, change).await
    }

    async fn object(&mut self, object: Result<Object, Unreadable>) -> Result<(), Closed> {
        match object {
            Ok(object) => self.set(Change::Set(object)).await,
            Err(error) => {
                let (count, _) = self.unreadable.get_or_insert_with(|| (0, error.to_string()));
                *count += 1;
                if self.version.is_some() { self.tell_unreadable().await } else { Ok(()) }
            }
        }
    }

    /// Says once how many objects could not be read.
    async fn tell_unreadable(&mut self) -> Result<(), Closed> {
        match &self.unreadable {
            Some((count, first)) if !self.unreadable_said => {
                self.unreadable_said = true;
                let line = format!(
                    "{count} of the {} that the Kubernetes API server sent can't be read and are left out (the first: {}); \
                     this is said once",
                    self.resource.name,
                    words(first)
                );
                self.sink.note(line).await
            }
            _ => Ok(()),
        }
    }

    /// Says what went wrong, if it is news.
    async fn tell(&self, trouble: &Trouble, url: &str) -> Result<(), Closed> {
        let (news, back) = {
            let mut health = self.health();
            let back = trouble.is_of_one_kind() && health.answered(self.resource.kind, false).back;
            (health.trouble(self.resource.kind, trouble), back)
        };
        if back {
            self.sink.note(back_again(url)).await?;
        }
        if news { self.sink.note(trouble.line(self.resource, url)).await } else { Ok(()) }
    }

    /// The server has answered as it should: says so if it did not before.
    async fn answered(&self, connection: &Connection) -> Result<(), Closed> {
        let News { back, allowed } = self.health().answered(self.resource.kind, true);
        if back {
            self.sink.note(back_again(&connection.url)).await?;
        }
        if allowed {
            self.sink.note(format!("the Kubernetes API server tells of {} now", self.resource.name)).await?;
        }
        Ok(())
    }

    /// Asks, and waits until the answer begins.
    async fn ask(&self, connection: &Connection, query: &str, list: bool) -> Result<Response<Body>, Trouble> {
        let limit = self.server.timing().answer;
        let request = Request::get(format!("{}?{query}", self.resource.path))
            .header(header::ACCEPT, accepted(self.resource, list))
            .header(header::USER_AGENT, concat!("droptrace/", env!("CARGO_PKG_VERSION")))
            .body(Body::empty())
            .map_err(|error| Trouble::Config(error.to_string()))?;
        let answer = timeout(limit, connection.client.send(request)).await;
        let answer =
            answer.map_err(|_| Trouble::Silent(limit))?.map_err(|error| Trouble::of_client(&error))?;
        let code = answer.status().as_u16();
        if code == 200 {
            return Ok(answer);
        }
        // What a refusal says is worth less than that it is one.
        let body = timeout(limit, whole(answer.into_body(), REFUSAL_BYTES, limit)).await;
        Err(Trouble::of_status(code, &body.unwrap_or(Ok(Vec::new())).unwrap_or_default()))
    }
}

fn back_again(url: &str) -> String {
    format!("the Kubernetes API server at {} answers again", words(url))
}

/// The forms of an answer that are read, the wanted one first: metadata, where that is enough.
fn accepted(resource: &Resource, list: bool) -> &'static str {
    match (resource.metadata, list) {
        (false, _) => "application/json",
        (true, true) => "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
        (true, false) => "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json",
    }
}

/// A whole answer, if it is not too long and does not pause for too long.
async fn whole(mut body: Body, most: usize, pause: Duration) -> Result<Vec<u8>, Trouble> {
    let mut all = Vec::new();
    loop {
        let piece = match timeout(pause, body.frame()).await {
            Ok(None) => return Ok(all),
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            Ok(Some(Err(error))) => return Err(Trouble::Cut(error.to_string())),
            Err(_) => return Err(Trouble::Silent(pause)),
        };
        if all.len() + piece.len() > most {
            return Err(Trouble::TooMuch("a page of more than 64 MiB"));
        }
        all.extend_from_slice(&piece);
    }
}

/// A value for a query (RFC 3986, section 2).
fn encode(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_can_not_change_the_question() {
        assert_eq!(encode("eyJ2-_.~"), "eyJ2-_.~");
        assert_eq!(encode("a&watch=1 #ü"), "a%26watch%3D1%20%23%C3%BC");
    }
}

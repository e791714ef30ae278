//! From the configuration to a connection.

use super::trouble::Trouble;
use super::{Options, Timing};
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use std::path::Path;
use std::time::Duration;
use std::{env, io};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tower::{BoxError, ServiceBuilder};

/// A peer that has vanished is noticed after about a minute, also while a watch has nothing to say.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// The server, connected to on demand, anew after trouble: the kubeconfig, its certificates or the server's address may
/// have changed.
#[derive(Debug)]
pub(super) struct Server {
    options: Options,
    current: Mutex<Current>,
}

#[derive(Debug, Default)]
struct Current {
    connection: Option<Connection>,
    made: u64,
}

/// A client for the server.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    /// The server's address, for people.
    pub(super) url: String,
    number: u64,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.number, self.url)
    }
}

impl Server {
    pub(super) fn new(options: Options) -> Self {
        Self { options, current: Mutex::default() }
    }

    pub(super) fn timing(&self) -> &Timing {
        &self.options.timing
    }

    /// The client for it.
    pub(super) async fn connection(&self) -> Result<Connection, Trouble> {
        let mut current = self.current.lock().await;
        if let Some(connection) = &current.connection {
            return Ok(connection.clone());
        }
        let config = config(&self.options).await?;
        let config = config.ok_or_else(|| Trouble::Config("there is no kubeconfig any more".to_owned()))?;
        let timing = *self.timing();
        let url = config.cluster_url.to_string();
        // Credentials may come from a program (`exec` in a kubeconfig), which is waited for.
        let made = timeout(timing.answer, spawn_blocking(move || client(&config, &timing)));
        let client = match made.await {
            Ok(Ok(client)) => client?,
            Ok(Err(died)) => return Err(Trouble::NoCredentials(died.to_string())),
            Err(_) => {
                return Err(Trouble::NoCredentials("the program that makes them does not end".to_owned()));
            }
        };
        current.made += 1;
        let connection = Connection { client, url, number: current.made };
        current.connection = Some(connection.clone());
        Ok(connection)
    }

    /// Reads the configuration again before the next connection.
    pub(super) async fn forget(&self, connection: &Connection) {
        let mut current = self.current.lock().await;
        if current.connection.as_ref().is_some_and(|current| current.number == connection.number) {
            current.connection = None;
        }
    }
}

/// True if there is a server to ask, or a configuration that is broken: that is worth a line.
pub(super) async fn configured(options: &Options) -> bool {
    !matches!(config(options).await, Ok(None))
}

/// The configuration; `None` where there is none at all.
async fn config(options: &Options) -> Result<Option<Config>, Trouble> {
    let kubeconfig = match &options.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let asked_for = options.kubeconfig.is_some() || options.context.is_some();
    let kubeconfig = match kubeconfig {
        Ok(kubeconfig) if asked_for || !kubeconfig.contexts.is_empty() => kubeconfig,
        Err(error) if asked_for || !is_absent(&error) => return Err(Trouble::Config(error.to_string())),
        _ => return in_cluster(),
    };
    let choice = KubeConfigOptions { context: options.context.clone(), ..KubeConfigOptions::default() };
    let config = Config::from_custom_kubeconfig(kubeconfig, &choice).await;
    config.map(Some).map_err(|error| Trouble::Config(error.to_string()))
}

/// The file that people have by default need not be there, nor may it be anywhere to look for.
fn is_absent(error: &KubeconfigError) -> bool {
    let named = env::var_os("KUBECONFIG").is_some_and(|paths| !paths.is_empty());
    match error {
        KubeconfigError::FindPath => true,
        KubeconfigError::ReadConfig(error, _) => error.kind() == io::ErrorKind::NotFound && !named,
        _ => false,
    }
}

/// The service account of the pod that this runs in; `None` if it is none, or has no account.
fn in_cluster() -> Result<Option<Config>, Trouble> {
    let token = Path::new("/var/run/secrets/kubernetes.io/serviceaccount/token");
    if env::var_os("KUBERNETES_SERVICE_HOST").is_none() || !token.exists() {
        return Ok(None);
    }
    Config::incluster().map(Some).map_err(|error| Trouble::Config(error.to_string()))
}

/// kube's own client with time limits, TCP keepalive and, as `kubectl` does, through a proxy if one is set.
fn client(config: &Config, timing: &Timing) -> Result<Client, Trouble> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_connect_timeout(Some(timing.connect));
    http.set_keepalive(Some(KEEPALIVE));
    http.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    http.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    match proxy(config) {
        None => stack(config, http),
        Some(proxy) if proxy.scheme_str() == Some("http") => stack(config, Tunnel::new(proxy, http)),
        Some(proxy) => Err(Trouble::Config(format!("the proxy {proxy} is not one of http://"))),
    }
}

/// The proxy of the kubeconfig, else of the environment. kube takes it from there without regard to NO_PROXY.
fn proxy(config: &Config) -> Option<Uri> {
    let of_environment = |uri: &Uri| {
        ["HTTPS_PROXY", "https_proxy"]
            .iter()
            .any(|name| env::var(name).ok().and_then(|v| v.parse().ok()).as_ref() == Some(uri))
    };
    match &config.proxy_url {
        Some(uri) if !of_environment(uri) => Some(uri.clone()),
        _ => Matcher::from_env().intercept(&config.cluster_url).map(|found| found.uri().clone()),
    }
}

fn stack<C>(config: &Config, connector: C) -> Result<Client, Trouble>
where
    C: tower::Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: hyper_util::client::legacy::connect::Connection
        + hyper::rt::Read
        + hyper::rt::Write
        + Send
        + Unpin
        + 'static,
    C::Future: Send + 'static,
    C::Error: Into<BoxError> + Send,
{
    let trouble = |error: kube::Error| match Trouble::of_client(&error) {
        Trouble::Unreachable(why) => Trouble::Config(why),
        trouble => trouble,
    };
    let connector = config.rustls_https_connector_with_connector(connector).map_err(trouble)?;
    let client =
        hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(trouble)?)
        .layer(config.extra_headers_layer().map_err(trouble)?)
        .map_err(BoxError::from)
        .service(client);
    Ok(Client::new(service, config.default_namespace.as_str()))
}

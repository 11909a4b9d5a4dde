//! Names become addresses: by the host's /etc/hosts and its DNS servers, asked without a thread that could be kept busy.
#![forbid(unsafe_code)]

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use hickory_resolver::config::{LookupIpStrategy, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Message;
use hickory_resolver::proto::rr::Name;
use hickory_resolver::system_conf::read_system_conf;
use hickory_resolver::{Resolver, TokioResolver};
use hyper_util::client::legacy::connect::dns;
use tower_service::Service;

use crate::types::hosts::HostName;

/// A resolver. It has read the host's files, so that it needs none of them any more.
#[derive(Clone)]
pub struct Names(TokioResolver);

impl Names {
    /// Reads /etc/resolv.conf and /etc/hosts. Without the first there are the names of the second, and no others.
    ///
    /// # Errors
    /// A sentence.
    pub fn read() -> Result<Names, String> {
        // In a static program the library's random numbers come from this file, which it opens at the first and keeps. Where
        // it cannot be opened the library would panic.
        std::fs::File::open("/dev/urandom").map_err(|error| format!("cannot open /dev/urandom: {error}"))?;
        drop(Message::query());
        let none = |_| (ResolverConfig::from_parts(None, Vec::new(), Vec::new()), ResolverOpts::default());
        let (config, mut options) = read_system_conf().unwrap_or_else(none);
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        let builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options);
        builder.build().map(Names).map_err(|error| format!("cannot set the resolver up: {error}"))
    }

    /// The addresses of a listed host. The name is whole: no search list of the host's makes another of it.
    ///
    /// # Errors
    /// A sentence.
    pub async fn of(&self, host: &HostName) -> Result<Vec<IpAddr>, String> {
        let mut name = Name::from_ascii(host.as_str()).map_err(|error| error.to_string())?;
        name.set_fqdn(true);
        let found = self.0.lookup_ip(name).await.map_err(|error| match error.is_no_records_found() {
            true => "its name has no address".to_owned(),
            false => error.to_string(),
        })?;
        Ok(found.iter().collect())
    }
}

/// For connections to an upstream, which the caller names as he would anywhere on this host.
impl Service<dns::Name> for Names {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: dns::Name) -> Self::Future {
        let resolver = self.0.clone();
        Box::pin(async move {
            let found = resolver.lookup_ip(name.as_str()).await.map_err(std::io::Error::other)?;
            // The port is the connector's.
            Ok(found.iter().map(|address| SocketAddr::new(address, 0)).collect::<Vec<_>>().into_iter())
        })
    }
}

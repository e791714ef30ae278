//! What Cilium translates: the bytes of its maps of services and backends (`cilium_lb4_services_v2`, `cilium_lb4_backends_v3`
//! and those of IPv6; struct lb4_key, lb4_service and lb4_backend, bpf/lib/common.h, later lb.h). Addresses and ports are big
//! endian.

use super::maps::{HASH, Shape, UnknownLayout};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

/// The pins of a family, newest first where there were others: services, backends.
pub const PINS: [([&str; 1], [&str; 2]); 2] = [
    (["cilium_lb4_services_v2"], ["cilium_lb4_backends_v3", "cilium_lb4_backends_v2"]),
    (["cilium_lb6_services_v2"], ["cilium_lb6_backends_v3", "cilium_lb6_backends_v2"]),
];

/// Place of flags2 in a service's value, and SVC_FLAG_LOCALREDIRECT, L7_LOADBALANCER, L7_DELEGATE and INT_LOCAL_SCOPE.
const FLAGS2: usize = 9;
const NOT_ENDPOINTS: u8 = 1 | 1 << 2 | 1 << 3 | 1 << 4;

/// An address that is translated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translated {
    /// What clients dial.
    pub address: SocketAddr,
    /// Its protocol; 0 stands for any, before services were told apart by it.
    pub protocol: u8,
    /// Where it leads; `None` where Cilium has reasons of its own not to lead to the service's endpoints: a local redirect, a
    /// proxy, or internalTrafficPolicy=Local.
    pub backends: Option<Vec<SocketAddr>>,
}

/// Keys and values of a map.
pub type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

/// Checks that a map is one of services.
///
/// # Errors
/// When it is not.
pub fn check_services(pin: &str, shape: Shape) -> Result<(), UnknownLayout> {
    check(pin, shape, &[(12, 12), (24, 12)])
}

/// Checks that a map is one of backends.
///
/// # Errors
/// When it is not.
pub fn check_backends(pin: &str, shape: Shape) -> Result<(), UnknownLayout> {
    // v3 and v2 of IPv4, v3 and v2 of IPv6.
    check(pin, shape, &[(4, 12), (4, 8), (4, 24), (4, 20)])
}

fn check(pin: &str, shape: Shape, sizes: &[(u32, u32)]) -> Result<(), UnknownLayout> {
    let is_known = shape.kind == HASH && sizes.contains(&(shape.key, shape.value));
    if is_known { Ok(()) } else { Err(UnknownLayout { pin: pin.to_owned(), shape }) }
}

/// What is translated, of the entries of both maps of a family.
#[must_use]
pub fn translated(services: &Entries, backends: &Entries) -> Vec<Translated> {
    let number = |key: &Vec<u8>| Some(u32::from_ne_bytes(*key.first_chunk()?));
    let backends: HashMap<u32, SocketAddr> = backends
        .iter()
        .filter_map(|(key, value)| Some((number(key)?, socket(value, value.len() > 12)?)))
        .collect();
    let mut found: BTreeMap<(SocketAddr, u8), Translated> = BTreeMap::new();
    for (key, value) in services {
        let is_v6 = key.len() > 12;
        let at = if is_v6 { 16 } else { 4 };
        // After address and port: slot u16, protocol u8, scope u8. Slot 0 is the service itself.
        let slot =
            key.get(at + 2..).and_then(|rest| rest.first_chunk()).map(|slot| u16::from_ne_bytes(*slot));
        let (Some(address), Some(slot), Some(&protocol)) = (socket(key, is_v6), slot, key.get(at + 4)) else {
            continue;
        };
        let backends_of = || Translated { address, protocol, backends: Some(Vec::new()) };
        let service = found.entry((address, protocol)).or_insert_with(backends_of);
        if slot == 0 && value.get(FLAGS2).is_some_and(|flags| flags & NOT_ENDPOINTS != 0) {
            service.backends = None;
        } else if slot > 0
            && let Some(to) = &mut service.backends
        {
            // The value begins with the backend's number. One that is not in its map is lost, as a lookup is.
            to.extend(number(value).and_then(|id| backends.get(&id)));
        }
    }
    for to in found.values_mut().filter_map(|service| service.backends.as_mut()) {
        to.sort_unstable();
        to.dedup();
    }
    found.into_values().collect()
}

/// An address and the port behind it.
fn socket(bytes: &[u8], is_v6: bool) -> Option<SocketAddr> {
    let (address, rest) = if is_v6 {
        let (address, rest) = bytes.split_first_chunk::<16>()?;
        (IpAddr::from(*address), rest)
    } else {
        let (address, rest) = bytes.split_first_chunk::<4>()?;
        (IpAddr::from(*address), rest)
    };
    Some(SocketAddr::new(address, u16::from_be_bytes(*rest.first_chunk()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(address: &[u8], port: u16, slot: u16, protocol: u8) -> Vec<u8> {
        [address, &port.to_be_bytes(), &slot.to_ne_bytes(), &[protocol, 0, 0, 0]].concat()
    }

    fn value(backend: u32, count: u16) -> Vec<u8> {
        [&backend.to_ne_bytes()[..], &count.to_ne_bytes(), &[0; 6]].concat()
    }

    #[test]
    fn services_lead_to_their_backends() {
        let (vip, pod) = ([10, 96, 0, 9], [10, 244, 0, 7]);
        let services = Entries::from([
            (key(&vip, 80, 0, 6), value(0, 2)),
            (key(&vip, 80, 1, 6), value(11, 0)),
            (key(&vip, 80, 2, 6), value(99, 0)),
            (key(&vip, 53, 0, 17), value(0, 0)),
        ]);
        let backend = |pad: usize| [&pod[..], &8080_u16.to_be_bytes(), &vec![6; pad]].concat();
        for pad in [2, 6] {
            let backends = Entries::from([(11_u32.to_ne_bytes().to_vec(), backend(pad))]);
            let told = translated(&services, &backends);
            let of = |at: usize| (told[at].address.to_string(), told[at].protocol, told[at].backends.clone());
            assert_eq!(of(0), ("10.96.0.9:53".into(), 17, Some(vec![])));
            assert_eq!(of(1), ("10.96.0.9:80".into(), 6, Some(vec!["10.244.0.7:8080".parse().unwrap()])));
            assert_eq!(told.len(), 2);
        }
        // A local redirect leads where Cilium wants.
        let mut redirected = value(0, 1);
        redirected[FLAGS2] = 1;
        let services =
            Entries::from([(key(&vip, 80, 0, 6), redirected), (key(&vip, 80, 1, 6), value(11, 0))]);
        assert_eq!(translated(&services, &Entries::new())[0].backends, None);
        assert!(translated(&Entries::from([(vec![1], vec![])]), &Entries::new()).is_empty());
    }

    #[test]
    fn those_of_ipv6_are_longer() {
        let (vip, pod) = ([0xfd; 16], [0xfe; 16]);
        let services =
            Entries::from([(key(&vip, 80, 0, 0), value(0, 1)), (key(&vip, 80, 1, 0), value(3, 0))]);
        for pad in [2, 6] {
            let backend = [&pod[..], &8080_u16.to_be_bytes(), &vec![0; pad]].concat();
            let told = translated(&services, &Entries::from([(3_u32.to_ne_bytes().to_vec(), backend)]));
            assert_eq!(
                (told.len(), told[0].protocol, told[0].backends.as_ref().unwrap()[0].port()),
                (1, 0, 8080)
            );
        }
    }

    #[test]
    fn only_known_layouts_are_read() {
        let shape = |kind, key, value| Shape { kind, key, value };
        assert!(check_services("cilium_lb4_services_v2", shape(HASH, 12, 12)).is_ok());
        assert!(check_backends("cilium_lb6_backends_v3", shape(HASH, 4, 24)).is_ok());
        for odd in [shape(HASH, 12, 16), shape(11, 12, 12)] {
            assert!(check_services("x", odd).is_err() && check_backends("x", odd).is_err());
        }
    }
}

//! Which addresses a listed name may have. Whoever answers for the name chooses them, and so would choose the metadata
//! service, a database beside this host or the host itself.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What is no host of the internet, by its first bits (RFC 6890 and IANA's registry).
const NETS4: [(Ipv4Addr, u32, &str); 15] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8, "unspecified"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "a provider's own"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local, as metadata services are"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "reserved"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "for documentation"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "a relay of 6to4"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "for benchmarks"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "for documentation"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "for documentation"),
    // Multicast, and what is reserved up to broadcast.
    (Ipv4Addr::new(224, 0, 0, 0), 3, "multicast, broadcast or reserved"),
    // Azure's host agent has an address that looks like any other.
    (Ipv4Addr::new(168, 63, 129, 16), 32, "a metadata service"),
];

/// The same within 2000::/3, outside of which nothing is on the internet.
const NETS6: [(Ipv6Addr, u32, &str); 4] = [
    // Teredo, benchmarks, ORCHID: assignments to protocols, not to hosts.
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, "a protocol's"),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, "for documentation"),
    // An address of IPv4 is in it, and a relay would lead there.
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, "6to4"),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, "for documentation"),
];

/// NAT64 (RFC 6052): where a host has IPv6 alone, DNS gives public hosts of IPv4 these addresses.
const NAT64: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0);

/// Why no connection goes to an address; nothing where it is a host on the internet. `own` are the addresses of this host.
pub fn refused(address: IpAddr, own: &[IpAddr]) -> Option<&'static str> {
    let kind = match address {
        IpAddr::V4(address) => refused4(address),
        IpAddr::V6(address) if within6(address, NAT64, 96) => return refused(low(address), own),
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => Some("one of IPv4 in disguise"),
        IpAddr::V6(address) if address.to_bits() >> 125 != 1 => Some("not on the internet"),
        IpAddr::V6(address) => NETS6.iter().find(|(net, bits, _)| within6(address, *net, *bits)).map(|net| net.2),
    };
    kind.or_else(|| own.contains(&address).then_some("this host's own"))
}

/// The address of IPv4 in the last bits.
fn low(address: Ipv6Addr) -> IpAddr {
    Ipv4Addr::from_bits(address.to_bits() as u32).into()
}

fn refused4(address: Ipv4Addr) -> Option<&'static str> {
    let within = |net: Ipv4Addr, bits: u32| (address.to_bits() ^ net.to_bits()) >> (32 - bits) == 0;
    NETS4.iter().find(|(net, bits, _)| within(*net, *bits)).map(|net| net.2)
}

fn within6(address: Ipv6Addr, net: Ipv6Addr, bits: u32) -> bool {
    (address.to_bits() ^ net.to_bits()) >> (128 - bits) == 0
}

/// The addresses of this host's interfaces.
///
/// # Errors
/// The kernel does not say: then none can be told from others.
pub fn own() -> Result<Vec<IpAddr>, nix::errno::Errno> {
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    Ok(nix::ifaddrs::getifaddrs()?.filter_map(address).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is on the internet.
    const OPEN: [&str; 21] = [
        "1.1.1.1",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "172.15.255.255",
        "172.32.0.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "168.63.129.15",
        "2606:4700::1111",
        "2a00:1450::1",
        "2001:200::1",
        "64:ff9b::8.8.8.8",
    ];

    /// What is not, and a word of the reason.
    const CLOSED: [(&str, &str); 53] = [
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("10.0.0.1", "private"),
        ("100.64.0.1", "provider"),
        ("100.100.100.200", "provider"),
        ("100.127.255.255", "provider"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("169.254.169.254", "metadata"),
        ("169.254.170.2", "metadata"),
        ("168.63.129.16", "metadata"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.0.0.192", "reserved"),
        ("192.0.2.1", "documentation"),
        ("192.88.99.1", "6to4"),
        ("192.168.1.1", "private"),
        ("198.18.0.1", "benchmarks"),
        ("198.19.255.255", "benchmarks"),
        ("198.51.100.7", "documentation"),
        ("203.0.113.7", "documentation"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "broadcast"),
        ("::", "not on the internet"),
        ("::1", "not on the internet"),
        ("::7f00:1", "not on the internet"),
        ("::a9fe:a9fe", "not on the internet"),
        ("::ffff:127.0.0.1", "disguise"),
        ("::ffff:169.254.169.254", "disguise"),
        ("::ffff:8.8.8.8", "disguise"),
        ("::ffff:0:127.0.0.1", "not on the internet"),
        ("64:ff9b::127.0.0.1", "loopback"),
        ("64:ff9b::169.254.169.254", "metadata"),
        ("64:ff9b::10.1.2.3", "private"),
        ("64:ff9b:1::8.8.8.8", "not on the internet"),
        ("100::1", "not on the internet"),
        ("2001::1", "protocol"),
        ("2001:0:53aa:64c::1", "protocol"),
        ("2001:2::1", "protocol"),
        ("2001:20::1", "protocol"),
        ("2001:db8::1", "documentation"),
        ("3fff::1", "documentation"),
        ("2002:7f00:1::", "6to4"),
        ("2002:a9fe:a9fe::1", "6to4"),
        ("4000::1", "not on the internet"),
        ("5f00::1", "not on the internet"),
        ("fc00::1", "not on the internet"),
        ("fd00:ec2::254", "not on the internet"),
        ("fe80::1", "not on the internet"),
        ("fec0::1", "not on the internet"),
        ("ff02::1", "not on the internet"),
    ];

    #[test]
    fn what_is_on_the_internet_and_nothing_else_is_reached() {
        for open in OPEN {
            assert_eq!(refused(open.parse().unwrap(), &[]), None, "{open}");
        }
        for (closed, part) in CLOSED {
            let why = refused(closed.parse().unwrap(), &[]).unwrap_or_else(|| panic!("{closed} is open"));
            assert!(why.contains(part), "{closed}: {why}");
        }
    }

    #[test]
    fn the_hosts_own_addresses_are_refused_also_through_nat64() {
        let own: Vec<IpAddr> = ["8.8.4.4", "2606:4700::9"].iter().map(|text| text.parse().unwrap()).collect();
        for address in ["8.8.4.4", "64:ff9b::8.8.4.4", "2606:4700::9"] {
            assert_eq!(refused(address.parse().unwrap(), &own), Some("this host's own"), "{address}");
        }
        let found = super::own().unwrap();
        assert!(found.iter().any(IpAddr::is_loopback), "{found:?}");
    }
}

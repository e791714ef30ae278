//! The `droptrace` command.
use std::sync::Arc;
use tracer_user::{filter::Compiled, probe::{btf::BtfDir, offsets, symbols, tracer::{Tracer, KernelLayout}}};
fn main() -> anyhow::Result<()> {
    let dir = BtfDir::new("/sys/kernel/btf");
    let t = std::time::Instant::now();
    let vm = Arc::new(dir.load_vmlinux()?);
    let ct = dir.load_module("nf_conntrack", &vm)?;
    let r = offsets::resolve(&vm, ct.as_ref());
    eprintln!("btf {:?} {:#?}", t.elapsed(), r);
    let mut k = KernelLayout { offsets: r.offsets, conntrack: r.conntrack, ..Default::default() };
    k.pktinfo = vm.offset_of("nft_pktinfo","skb").zip(vm.offset_of("nft_pktinfo","state"));
    let text = std::fs::read_to_string("/proc/kallsyms")?;
    let mut syms: Vec<(u64,&str)> = text.lines().filter_map(|l| { let mut w = l.split_whitespace(); let a = u64::from_str_radix(w.next()?,16).ok()?; let t=w.next()?; if !"tTwW".contains(t) {return None}; Some((a,w.next()?)) }).collect();
    syms.sort();
    let range = |n: &str| { let i = syms.iter().position(|s| s.1==n)?; let s=syms[i].0; let e=syms[i..].iter().find(|x| x.0> s)?.0; Some(tracer_common::TextRange{start:s,end:e}) };
    k.nf_hook_slow = range("nf_hook_slow").unwrap_or_default();
    k.nft_do_chain = range("nft_do_chain").unwrap_or_default();
    eprintln!("{:?} {:x?}", k.pktinfo, k.nft_do_chain);
    let mut tr = Tracer::start(&k, &Compiled::default())?;
    tr.dbg(); eprintln!("attached {:?} {:?}", t.elapsed(), tr.layout());
    let n: u64 = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(3);
    let mut ev = 0u64;
    let mut shown = 0;
    let end = std::time::Instant::now() + std::time::Duration::from_secs(n);
    while std::time::Instant::now() < end {
        std::thread::sleep(std::time::Duration::from_millis(20));
        while let Some(item) = tr.ring().next() {
            ev += 1;
            let e: tracer_common::Event = unsafe { std::ptr::read_unaligned(item.as_ptr().cast()) };
            let sym = |a: u64| { let i = syms.partition_point(|s| s.0 <= a); if i==0 {return format!("{a:x}")}; format!("{}+{:#x}", syms[i-1].1, a-syms[i-1].0) };
            shown += 1;
            if shown < 30 {
                eprintln!("{} reason {} {} netns {} by {} {:?}:{} -> {:?}:{} proto {} len {} dev {:?} flags {:#x} hook {} pf {} segs {} hdr {} stack {:?}", e.time, e.key.reason, sym(e.key.location), e.key.netns, e.netns_source, std::net::Ipv6Addr::from(e.key.source), e.key.source_port, std::net::Ipv6Addr::from(e.key.destination), e.key.destination_port, e.key.transport, e.length, String::from_utf8_lossy(&e.device.name), e.flags, e.hook, e.family, e.gso_segments, e.header_length, e.stack[..e.stack_length.min(24) as usize].iter().map(|a| sym(*a)).collect::<Vec<_>>());
                if e.flags & 2 != 0 { for (i,w) in e.window.iter().enumerate() { let s=sym(*w); eprintln!("   +{} {:x} {}", i*8, w, if *w>0xffffffff80000000 {s} else {String::new()}); } }
            }
        }
    }
    let mut total = 0;
    tr.stop()?;
    for g in 0..2 { tr.read_slots(g, |r| total += r.count); }
    eprintln!("events {ev} total {total} losses {:?}", tr.losses());
    Ok(())
}

//! Programs that the end-to-end tests put on devices. No part of droptrace: only the tests embed this object.
#![no_std]
#![no_main]
#![allow(unreachable_pub, missing_docs, reason = "a program: nothing here is anybody's interface")]

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action::XDP_DROP},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};

/// What is left in the control block of a packet that is dropped, as Cilium's programs do. Set before the load.
#[unsafe(no_mangle)]
static WORDS: [u32; 5] = [0; 5];

/// Not 0: [`WORDS`] are left there. Else the control block stays as it is. Set before the load.
#[unsafe(no_mangle)]
static LEAVES_WORDS: u32 = 0;

/// Drops, by the name of a program of Cilium's.
#[classifier]
pub fn cil_from_netdev(ctx: TcContext) -> i32 {
    leave_and_drop(&ctx)
}

/// Drops, by a name that is nobody's.
#[classifier]
pub fn bouncer(ctx: TcContext) -> i32 {
    leave_and_drop(&ctx)
}

/// Leaves each packet to the next program.
#[classifier]
pub fn idle(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Drops what comes in, before it is a packet to the kernel.
#[xdp]
pub fn xdp_bouncer(_ctx: XdpContext) -> u32 {
    XDP_DROP
}

#[inline(always)]
fn leave_and_drop(ctx: &TcContext) -> i32 {
    if constant(&LEAVES_WORDS) != 0 {
        let skb = ctx.as_ptr().cast::<__sk_buff>();
        // Word by word, volatile: the verifier takes stores to the context only at constant offsets from its start, so
        // no loop, copy or slice may come of this.
        // SAFETY: the kernel's own context, whose control block such a program may write.
        unsafe {
            (&raw mut (*skb).cb[0]).write_volatile(constant(&WORDS[0]));
            (&raw mut (*skb).cb[1]).write_volatile(constant(&WORDS[1]));
            (&raw mut (*skb).cb[2]).write_volatile(constant(&WORDS[2]));
            (&raw mut (*skb).cb[3]).write_volatile(constant(&WORDS[3]));
            (&raw mut (*skb).cb[4]).write_volatile(constant(&WORDS[4]));
        }
    }
    TC_ACT_SHOT
}

/// A value as the tests wrote it before the load.
#[inline(always)]
fn constant(value: &'static u32) -> u32 {
    // SAFETY: a valid reference; volatile because what the compiler sees here is not what will be there.
    unsafe { core::ptr::read_volatile(value) }
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier refuses a program that can get here.
    loop {}
}

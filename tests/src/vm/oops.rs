//! What a dying kernel says on its console, in one line.

/// Frames of the stack that are told.
const FRAMES: usize = 12;

/// The first fault on a console: what it was, where (RIP), and the calls that led there. `None` if there is none.
#[must_use]
pub(super) fn summary(console: &str) -> Option<String> {
    const FAULTS: [&str; 7] = [
        "BUG:",
        "int3: ",
        "kernel BUG at",
        "Oops:",
        "general protection fault",
        "invalid opcode",
        "Kernel panic",
    ];
    let mut lines = console.lines().map(without_time).skip_while(|line| {
        let is_fault = FAULTS.iter().any(|fault| line.contains(fault));
        !is_fault
    });
    let fault = lines.next()?.trim().to_owned();
    let rest: Vec<&str> = lines.collect();
    let place = rest.iter().find_map(|line| line.strip_prefix("RIP: ")).unwrap_or("unknown");
    let calls = rest.iter().skip_while(|line| !line.starts_with("Call Trace:")).skip(1);
    let is_call = |line: &&&str| line.starts_with(' ') && line.contains("+0x") && !line.contains(" ? ");
    let calls: Vec<&str> = calls
        .take_while(|line| line.starts_with(' ') || line.starts_with('<'))
        .filter(is_call)
        .filter_map(|line| line.trim().split('+').next())
        .take(FRAMES)
        .collect();
    Some(format!("{fault}; at {}; called by {}", place.trim(), calls.join(" < ")))
}

/// A line without the kernel's time stamp.
fn without_time(line: &str) -> &str {
    line.strip_prefix('[').and_then(|rest| rest.split_once("] ")).map_or(line, |(_, text)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_fault_with_its_place_and_calls() {
        let console = "SeaBIOS\n\
            [  318.1] BUG: unable to handle page fault for address: ffffffffffffffd8\n\
            [  318.1] Oops: Oops: 0000 [#1] SMP NOPTI\n\
            [  318.2] RIP: 0010:first+0x12/0x40\n\
            [  318.3] Call Trace:\n\
            [  318.3]  <IRQ>\n\
            [  318.3]  ? stale+0x1/0x2\n\
            [  318.3]  second+0x5/0x20 [nf_tables]\n\
            [  318.3]  third+0x5/0x20\n\
            [  318.4] Modules linked in: x+0x1\n\
            [  318.5] RIP: 0010:later+0x1/0x2\n\
            [  318.6] Kernel panic - not syncing: Fatal exception in interrupt\n";
        assert_eq!(
            summary(console).unwrap(),
            "BUG: unable to handle page fault for address: ffffffffffffffd8; at 0010:first+0x12/0x40; \
             called by second < third"
        );
        let breakpoint =
            "[ 571.8] Oops: int3: 0000 [#1] SMP NOPTI\n[ 571.9] RIP: 0010:bpf_trampoline_1+0x11d/0x1bb\n";
        assert!(
            summary(breakpoint)
                .unwrap()
                .starts_with("Oops: int3: 0000 [#1] SMP NOPTI; at 0010:bpf_trampoline_1")
        );
        assert_eq!(summary("[ 1.0] all is well\n"), None);
        assert!(summary("[ 1.0] Kernel panic - not syncing: x").unwrap().ends_with("at unknown; called by "));
    }
}

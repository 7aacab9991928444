//! The stub: the few dozen bytes that run inside another process. The one file outside `kernel` with `unsafe`.
//!
//! On entry `r12` is the address of the area (header, calls, data: `batch.rs` lays it out) and `rsp` is 8 past a
//! signal frame, or anything where no frame is kept. It walks the calls, then sends itself the marker signal by
//! tgkill; a tracer that lives takes that stop and never lets it go on. One that was killed leaves the default
//! action (ignore) and the `rt_sigreturn` that follows, which puts the program back where it was.
//! Position independent, no stack, no memory but the area.
#![allow(unsafe_code)]

std::arch::global_asm!(
    ".pushsection .rodata.podmig_stub,\"a\",@progbits",
    ".p2align 4",
    ".globl podmig_stub_start",
    ".globl podmig_stub_finish",
    ".globl podmig_stub_end",
    ".hidden podmig_stub_start",
    ".hidden podmig_stub_finish",
    ".hidden podmig_stub_end",
    // Argument `reg` of the call at r13: the value, or what it points to (u64 or sign-extended i32), by flag.
    ".macro PODMIG_ARG reg, offset, word, int",
    "    mov \\reg, [r13 + \\offset]",
    "    test ebp, \\word",
    "    jz 771f",
    "    mov \\reg, [\\reg]",
    "771:",
    "    test ebp, \\int",
    "    jz 772f",
    "    movsxd \\reg, dword ptr [\\reg]",
    "772:",
    ".endm",
    "podmig_stub_start:",
    "    lea r13, [r12 + 64]",
    "    mov rbx, [r12 + 16]",
    "773:",
    "    test rbx, rbx",
    "    jz 775f",
    "    mov rbp, [r13 + 64]",
    "    PODMIG_ARG rdi, 8, 0x1, 0x10000",
    "    PODMIG_ARG rsi, 16, 0x2, 0x20000",
    "    PODMIG_ARG rdx, 24, 0x4, 0x40000",
    "    PODMIG_ARG r10, 32, 0x8, 0x80000",
    "    PODMIG_ARG r8, 40, 0x10, 0x100000",
    "    PODMIG_ARG r9, 48, 0x20, 0x200000",
    "    mov rax, [r13]",
    "    syscall",
    "    mov [r13 + 56], rax",
    "    inc qword ptr [r12 + 24]",
    "    test ebp, 0x100",
    "    jz 774f",
    "    cmp rax, -4095",
    "    jae 775f",
    "774:",
    "    add r13, 72",
    "    dec rbx",
    "    jmp 773b",
    "775:",
    "podmig_stub_finish:",
    "    mov rdi, [r12 + 32]",
    "    mov rsi, [r12 + 40]",
    "    mov rdx, [r12 + 48]",
    "    mov eax, 234", // tgkill
    "    syscall",
    "    mov eax, 15", // rt_sigreturn
    "    syscall",
    "    ud2",
    "podmig_stub_end:",
    ".purgem PODMIG_ARG",
    ".popsection",
);

unsafe extern "C" {
    static podmig_stub_start: u8;
    static podmig_stub_finish: u8;
    static podmig_stub_end: u8;
}

/// The stub's machine code.
pub fn code() -> &'static [u8] {
    let (start, end) = (&raw const podmig_stub_start, &raw const podmig_stub_end);
    // SAFETY: both labels are in this object's read-only data, `end` after `start`, with only the stub between them.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

/// Offset in [`code`] from which on only the marker signal is sent.
pub fn finish() -> u64 {
    let (start, finish) = (&raw const podmig_stub_start, &raw const podmig_stub_finish);
    (finish.addr() - start.addr()) as u64
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_small_and_ends_in_sigreturn() {
        let code = super::code();
        assert!(code.len() < 256, "{} bytes", code.len());
        assert!(code.ends_with(&[0xb8, 15, 0, 0, 0, 0x0f, 0x05, 0x0f, 0x0b]));
    }
}

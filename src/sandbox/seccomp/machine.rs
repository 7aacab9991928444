//! A classic BPF machine as seccomp's checker restricts it, for the tests: forward jumps and aligned word loads only.

use libc::sock_filter;

/// `struct seccomp_data`.
#[derive(Clone, Copy)]
pub(super) struct Data {
    pub(super) nr: u32,
    pub(super) arch: u32,
    pub(super) args: [u64; 6],
}

impl Data {
    fn bytes(&self) -> [u8; 64] {
        let mut b = [0; 64];
        b[..4].copy_from_slice(&self.nr.to_le_bytes());
        b[4..8].copy_from_slice(&self.arch.to_le_bytes());
        for (i, a) in self.args.iter().enumerate() {
            b[16 + 8 * i..24 + 8 * i].copy_from_slice(&a.to_le_bytes());
        }
        b
    }
}

/// What the filter does with a call: the 32-bit return value of seccomp(2).
pub(super) fn evaluate(program: &[sock_filter], data: &Data) -> Result<u32, &'static str> {
    run(program, &data.bytes())
}

/// Runs `program` on the bytes of a `struct seccomp_data`; its return value.
fn run(program: &[sock_filter], data: &[u8; 64]) -> Result<u32, &'static str> {
    let (mut a, mut x, mut mem) = (0u32, 0u32, [0u32; 16]);
    let mut pc = 0usize;
    while let Some(f) = program.get(pc) {
        pc += 1;
        let slot = |k: u32| usize::try_from(k).ok().filter(|k| *k < 16).ok_or("memory slot out of range");
        match f.code {
            0x20 => a = load(data, f.k)?,
            0x80 => a = 64, // BPF_LD | BPF_W | BPF_LEN
            0x81 => x = 64,
            0x00 => a = f.k,
            0x01 => x = f.k,
            0x60 => a = mem[slot(f.k)?],
            0x61 => x = mem[slot(f.k)?],
            0x02 => mem[slot(f.k)?] = a,
            0x03 => mem[slot(f.k)?] = x,
            0x07 => x = a,
            0x87 => a = x,
            0x06 => return Ok(f.k),
            0x16 => return Ok(a),
            code if code & 7 == 5 => pc += jump(f, a, x)?,
            code if code & 7 == 4 => a = alu(code, a, if code & 8 == 8 { x } else { f.k })?,
            _ => return Err("unknown instruction"),
        }
    }
    Err("runs off its end")
}

fn load(data: &[u8; 64], k: u32) -> Result<u32, &'static str> {
    let at = usize::try_from(k).map_err(|_| "load out of range")?;
    let word = data.get(at..at + 4).filter(|_| at % 4 == 0).ok_or("load out of range")?;
    Ok(u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}

fn jump(f: &sock_filter, a: u32, x: u32) -> Result<usize, &'static str> {
    let operand = if f.code & 8 == 8 { x } else { f.k };
    let taken = match f.code & 0xf0 {
        0x00 => return usize::try_from(f.k).map_err(|_| "jump out of range"),
        0x10 => a == operand,
        0x20 => a > operand,
        0x30 => a >= operand,
        0x40 => a & operand != 0,
        _ => return Err("unknown jump"),
    };
    Ok(usize::from(if taken { f.jt } else { f.jf }))
}

fn alu(code: u16, a: u32, b: u32) -> Result<u32, &'static str> {
    Ok(match code & 0xf0 {
        0x00 => a.wrapping_add(b),
        0x10 => a.wrapping_sub(b),
        0x20 => a.wrapping_mul(b),
        // A division by zero ends the program with 0 in the kernel: RET_KILL_THREAD, so never an allowed call.
        0x30 => a.checked_div(b).ok_or("division by zero")?,
        0x40 => a | b,
        0x50 => a & b,
        0x60 => a.checked_shl(b).unwrap_or(0),
        0x70 => a.checked_shr(b).unwrap_or(0),
        0x80 => a.wrapping_neg(),
        0xa0 => a ^ b,
        _ => return Err("unknown arithmetic"),
    })
}

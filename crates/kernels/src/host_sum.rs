//! The sum of buffers of several devices by way of the host: always there, and held as the reference of faster ways.

use std::fmt;

use crate::Backend;

/// Devices that know nothing of each other.
#[derive(Debug, Clone, Copy)]
pub struct HostSum;

impl fmt::Display for HostSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "in the host's memory")
    }
}

/// Replaces each buffer by the sum of all, added up in their order.
///
/// # Panics
/// When one is shorter than the first.
pub(crate) fn sum_on_host<B: Backend>(parts: &mut [(&B, &mut B::Wide)]) {
    let Some((backend, buffer)) = parts.first() else { return };
    let mut sum = vec![0.0; backend.wide_len(buffer)];
    backend.download(&mut sum, buffer, 0);
    let mut own = vec![0.0; sum.len()];
    for (backend, buffer) in &parts[1..] {
        backend.download(&mut own, buffer, 0);
        sum.iter_mut().zip(&own).for_each(|(sum, own)| *sum += own);
    }
    for (backend, buffer) in parts {
        backend.upload(buffer, 0, &sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cpu;

    #[test]
    fn every_buffer_holds_the_sum_in_order() {
        let cpu = Cpu::<f32>::new();
        // Another order rounds otherwise: 1 is lost beside 2^25 unless it meets the other one first.
        let mut buffers = [vec![1.0, 2.0], vec![1.0, -2.0], vec![33_554_432.0, 0.5]];
        let mut parts: Vec<_> = buffers.iter_mut().map(|buffer| (&cpu, buffer)).collect();
        Cpu::sum(&Cpu::join(&[&cpu, &cpu, &cpu]), &mut parts);
        assert_eq!(buffers, [[33_554_434.0, 0.5]; 3].map(Vec::from));
    }
}

// Every op's schema, once. Kernels attach to them in csrc/cpu and csrc/cuda; an op that a device
// lacks is served by fastmtt/ops/reference.py, which also says what each op computes. What Triton's
// side alone calls, and nothing else serves, is declared in csrc/cuda/hopper_conv_ops.cpp.
//
// Shapes: activations [S,B,H,W,C], conv weights [S,3,3,Cin,Cout], gamma and beta [S,C],
// rstd [S,B,C], flat vectors [S,P]. A result that `needs` does not ask for has shape [0].
//
// An overload `into` writes its results into tensors that the caller gives after the other
// arguments, contiguous (a block's for each student) and apart from whatever the op reads; one for
// a result not asked for is left alone. `scratch` is a uint8 tensor that a CPU's op works in and
// resizes to what it needs; a GPU's leaves it alone.

#include <Python.h>
#include <torch/library.h>

TORCH_LIBRARY(fastmtt, m) {
  m.def(
      "conv_block(Tensor a, Tensor w, Tensor gamma, Tensor beta, bool bf16=False)"
      " -> (Tensor p, Tensor xhat, Tensor rstd)");
  m.def(
      "conv_block.into(Tensor a, Tensor w, Tensor gamma, Tensor beta, bool bf16, Tensor(a!) p,"
      " Tensor(b!) xhat, Tensor(c!) rstd, Tensor(d!)? scratch=None) -> ()");
  m.def(
      "conv_block_backward(Tensor gp, Tensor a, Tensor w, Tensor gamma, Tensor beta, Tensor xhat,"
      " Tensor rstd, bool[2] needs, bool bf16=False)"
      " -> (Tensor ga, Tensor gw, Tensor ggamma, Tensor gbeta)");
  m.def(
      "conv_block_backward.into(Tensor gp, Tensor a, Tensor w, Tensor gamma, Tensor beta,"
      " Tensor xhat, Tensor rstd, bool[2] needs, bool bf16, Tensor(a!) ga, Tensor(b!) gw,"
      " Tensor(c!) ggamma, Tensor(d!) gbeta, Tensor(e!)? scratch=None) -> ()");
  m.def(
      "conv_block_jvp(Tensor a, Tensor? a_dot, Tensor w, Tensor w_dot, Tensor gamma,"
      " Tensor gamma_dot, Tensor beta, Tensor beta_dot, Tensor? xhat, Tensor? rstd,"
      " bool bf16=False)"
      " -> (Tensor p, Tensor p_dot, Tensor xhat_dot, Tensor rstd_dot, Tensor new_xhat,"
      " Tensor new_rstd)");
  m.def(
      "conv_block_jvp.into(Tensor a, Tensor? a_dot, Tensor w, Tensor w_dot, Tensor gamma,"
      " Tensor gamma_dot, Tensor beta, Tensor beta_dot, Tensor? xhat, Tensor? rstd, bool bf16,"
      " Tensor(a!) p, Tensor(b!) p_dot, Tensor(c!) xhat_dot, Tensor(d!) rstd_dot,"
      " Tensor(e!) new_xhat, Tensor(f!) new_rstd, Tensor(g!)? scratch=None) -> ()");
  m.def(
      "conv_block_backward_jvp(Tensor gp, Tensor gp_dot, Tensor a, Tensor? a_dot, Tensor w,"
      " Tensor w_dot, Tensor gamma, Tensor gamma_dot, Tensor beta, Tensor xhat, Tensor rstd,"
      " Tensor xhat_dot, Tensor rstd_dot, bool[3] needs, bool bf16=False)"
      " -> (Tensor ga_dot, Tensor gw_dot, Tensor ggamma_dot, Tensor gbeta_dot, Tensor ga)");
  m.def(
      "conv_block_backward_jvp.into(Tensor gp, Tensor gp_dot, Tensor a, Tensor? a_dot, Tensor w,"
      " Tensor w_dot, Tensor gamma, Tensor gamma_dot, Tensor beta, Tensor xhat, Tensor rstd,"
      " Tensor xhat_dot, Tensor rstd_dot, bool[3] needs, bool bf16, Tensor(a!) ga_dot,"
      " Tensor(b!) gw_dot, Tensor(c!) ggamma_dot, Tensor(d!) gbeta_dot, Tensor(e!) ga,"
      " Tensor(f!)? scratch=None) -> ()");

  m.def("linear_xent(Tensor f, Tensor w, Tensor b, Tensor y) -> (Tensor loss, Tensor logp)");
  m.def(
      "linear_xent.into(Tensor f, Tensor w, Tensor b, Tensor y, Tensor(a!) loss, Tensor(b!) logp)"
      " -> ()");
  m.def(
      "linear_xent_backward(Tensor f, Tensor w, Tensor logp, Tensor y, bool[2] needs)"
      " -> (Tensor gf, Tensor gw, Tensor gb, Tensor gy)");
  m.def(
      "linear_xent_backward.into(Tensor f, Tensor w, Tensor logp, Tensor y, bool[2] needs,"
      " Tensor(a!) gf, Tensor(b!) gw, Tensor(c!) gb, Tensor(d!) gy) -> ()");
  m.def(
      "linear_xent_jvp(Tensor f, Tensor f_dot, Tensor w, Tensor w_dot, Tensor b_dot, Tensor logp,"
      " Tensor y) -> (Tensor loss_dot, Tensor logp_dot)");
  m.def(
      "linear_xent_jvp.into(Tensor f, Tensor f_dot, Tensor w, Tensor w_dot, Tensor b_dot,"
      " Tensor logp, Tensor y, Tensor(a!) loss_dot, Tensor(b!) logp_dot) -> ()");
  m.def(
      "linear_xent_backward_jvp(Tensor f, Tensor f_dot, Tensor w, Tensor w_dot, Tensor logp,"
      " Tensor logp_dot, Tensor y, bool[3] needs)"
      " -> (Tensor gf_dot, Tensor gw_dot, Tensor gb_dot, Tensor gy_dot, Tensor gf)");
  m.def(
      "linear_xent_backward_jvp.into(Tensor f, Tensor f_dot, Tensor w, Tensor w_dot, Tensor logp,"
      " Tensor logp_dot, Tensor y, bool[3] needs, Tensor(a!) gf_dot, Tensor(b!) gw_dot,"
      " Tensor(c!) gb_dot, Tensor(d!) gy_dot, Tensor(e!) gf) -> ()");

  m.def("sgd_update(Tensor theta, Tensor g, Tensor lr) -> Tensor");
  m.def("sgd_update.into(Tensor theta, Tensor g, Tensor lr, Tensor(a!) result) -> ()");
  m.def(
      "sgd_momentum(Tensor theta, Tensor g, Tensor velocity, Tensor lr, float momentum,"
      " float weight_decay) -> (Tensor new_theta, Tensor new_velocity)");
  m.def(
      "sgd_momentum.into(Tensor theta, Tensor g, Tensor velocity, Tensor lr, float momentum,"
      " float weight_decay, Tensor(a!) new_theta, Tensor(b!) new_velocity) -> ()");
  m.def("dot(Tensor a, Tensor b) -> Tensor");
  m.def("dot.into(Tensor a, Tensor b, Tensor(a!) result) -> ()");
  m.def("sqdist(Tensor theta, Tensor target, Tensor? keep) -> Tensor");
  m.def("sqdist.into(Tensor theta, Tensor target, Tensor? keep, Tensor(a!) result) -> ()");

  m.def("dsa(Tensor x, Tensor kind, Tensor values, float cutout) -> Tensor");
  m.def("dsa.into(Tensor x, Tensor kind, Tensor values, float cutout, Tensor(a!) result) -> ()");
  m.def("dsa_transpose(Tensor g, Tensor kind, Tensor values, float cutout) -> Tensor");
  m.def(
      "dsa_transpose.into(Tensor g, Tensor kind, Tensor values, float cutout, Tensor(a!) result)"
      " -> ()");

  m.def("gsam_perturb(Tensor theta, Tensor g, float rho, bool adaptive) -> Tensor");
  m.def(
      "gsam_perturb.into(Tensor theta, Tensor g, float rho, bool adaptive, Tensor(a!) result)"
      " -> ()");
  m.def("gsam_combine(Tensor g, Tensor g_perturbed, float alpha) -> Tensor");
  m.def(
      "gsam_combine.into(Tensor g, Tensor g_perturbed, float alpha, Tensor(a!) result) -> ()");
}

// An empty module: importing fastmtt._C loads the library, whose initialisers register the ops.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return PyModule_Create(&definition);
}

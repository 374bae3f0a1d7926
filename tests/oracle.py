"""The report's two tables, written literally: the independent reference of the fast decoder.

Nothing is shared, hoisted or fused here. Each step repeats the hidden state for every region,
concatenates, and applies one linear layer, exactly as the tables say.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.models.lstm import LstmDecoder


class LiteralCaptioner(nn.Module):
    """Attention and LSTM of the report, with the weights of a fast decoder.

    ``D, N, A, E, V`` as in the legend. Features come as ``(B, D, H, W)``.
    """

    def __init__(self, fast: LstmDecoder) -> None:
        super().__init__()
        parameters = dict(fast.named_parameters())

        def copy(*names: str) -> nn.Parameter:
            return nn.Parameter(torch.cat([parameters[n].detach() for n in names], dim=1).clone())

        def vector(name: str) -> nn.Parameter:
            return nn.Parameter(parameters[name].detach().clone())

        self.embedding = copy("embedding.weight")
        self.w_att = copy("attention.of_region.weight", "attention.of_hidden.weight")
        self.b_att = vector("attention.of_region.bias")
        self.v_att = copy("attention.score.weight")
        self.w = copy("of_word.weight", "of_hidden.weight", "of_context.weight")
        self.b = vector("of_word.bias")
        self.w_out = copy("output.weight")
        self.b_out = vector("output.bias")
        self.n = fast.hidden_width
        self.mean_start = fast.start_h is not None
        if self.mean_start:
            self.w_h0, self.b_h0 = copy("start_h.weight"), vector("start_h.bias")
            self.w_c0, self.b_c0 = copy("start_c.weight"), vector("start_c.bias")
        self.gated = fast.gate is not None
        if self.gated:
            self.w_beta, self.b_beta = copy("gate.weight"), vector("gate.bias")

    def attend(self, features: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        flat = features.flatten(2).transpose(1, 2)  # (B, L, D)
        expanded = hidden.unsqueeze(1).expand(-1, flat.shape[1], -1)  # (B, L, N)
        joined = torch.cat([flat, expanded], dim=-1)  # (B, L, D + N)
        scores = torch.tanh(joined @ self.w_att.t() + self.b_att) @ self.v_att.t()  # (B, L, 1)
        weights = torch.softmax(scores.squeeze(-1), dim=-1)  # (B, L)
        return (flat * weights.unsqueeze(-1)).sum(dim=1), weights  # (B, D)

    def forward(self, features: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
        batch, length = captions.shape
        if self.mean_start:
            mean = features.flatten(2).mean(-1)
            h = torch.tanh(mean @ self.w_h0.t() + self.b_h0)
            c = mean @ self.w_c0.t() + self.b_c0
        else:
            h = c = features.new_zeros(batch, self.n)
        logits, attention = [], []
        for t in range(length):
            x = self.embedding[captions[:, t]]  # (B, E)
            z, alpha = self.attend(features, h)  # (B, D), (B, L)
            if self.gated:
                z = z * torch.sigmoid(h @ self.w_beta.t() + self.b_beta)
            combined = torch.cat([x, h, z], dim=-1)  # (B, E + N + D)
            i, f, o, candidate = (combined @ self.w.t() + self.b).chunk(4, dim=-1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(candidate)
            h = torch.sigmoid(o) * torch.tanh(c)
            logits.append(h @ self.w_out.t() + self.b_out)
            attention.append(alpha)
        return torch.stack(logits, 1), torch.stack(attention, 1)

    def gradients_by_fast_name(self) -> dict[str, Tensor]:
        """Every gradient, cut back into the blocks of the fast decoder."""
        d = self.w_att.shape[1] - self.n
        e = self.embedding.shape[1]
        blocks = {
            "embedding.weight": self.embedding,
            "attention.of_region.bias": self.b_att,
            "attention.score.weight": self.v_att,
            "of_word.bias": self.b,
            "output.weight": self.w_out,
            "output.bias": self.b_out,
        }
        if self.mean_start:
            blocks |= {"start_h.weight": self.w_h0, "start_h.bias": self.b_h0}
            blocks |= {"start_c.weight": self.w_c0, "start_c.bias": self.b_c0}
        if self.gated:
            blocks |= {"gate.weight": self.w_beta, "gate.bias": self.b_beta}
        found = {name: p.grad for name, p in blocks.items()}
        found["attention.of_region.weight"] = self.w_att.grad[:, :d]
        found["attention.of_hidden.weight"] = self.w_att.grad[:, d:]
        found["of_word.weight"] = self.w.grad[:, :e]
        found["of_hidden.weight"] = self.w.grad[:, e : e + self.n]
        found["of_context.weight"] = self.w.grad[:, e + self.n :]
        return found

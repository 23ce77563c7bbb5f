// Record the tensors of llama.cpp, tower (mtmd) and decoder, in a file for `minivl compare --names docs/llama.cpp/names.json`.
//
//     minivl::recording tensors;
//     mtmd_params.cb_eval = minivl::see_tower;           mtmd_params.cb_eval_user_data = &tensors;
//     context_params.cb_eval = minivl::see_decoder;      context_params.cb_eval_user_data = &tensors;
//     ...                                                // mtmd_encode_chunk, llama_decode: one prompt
//     tensors.save("port.safetensors");
//
// Set mtmd_params.warmup = false, and flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED in the parameters of both: flash
// attention rounds keys and values.
#pragma once
#include <cstring>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "ggml.h"

namespace minivl {

struct tensor {
    std::vector<int64_t> shape;  // slowest axis first
    std::string data;
    const char * dtype;
};

struct recording {
    std::map<std::string, tensor> tensors;

    void add(const std::string & name, const ggml_tensor * t) {
        const bool integer = t->type == GGML_TYPE_I32;
        const auto to_float = ggml_get_type_traits(t->type)->to_float;
        if (!integer && t->type != GGML_TYPE_F32 && !to_float) return;
        std::vector<char> raw(ggml_nbytes(t));  // from any device; rows may have gaps between them
        ggml_backend_tensor_get(t, raw.data(), 0, raw.size());
        const bool heads = name.find("Qcur") != std::string::npos || name.find("Kcur") != std::string::npos;
        const int order[4] = {0, heads ? 2 : 1, heads ? 1 : 2, 3};  // [T, heads, K] -> [heads, T, K]
        const int64_t n[3] = {t->ne[order[1]], t->ne[order[2]], t->ne[3]};
        std::vector<float> row(t->ne[0]);
        tensor & out = tensors[name] = {{n[2], n[1], n[0], t->ne[0]}, "", integer ? "I32" : "F32"};
        for (int64_t l = 0; l < n[2]; l++)
            for (int64_t k = 0; k < n[1]; k++)
                for (int64_t j = 0; j < n[0]; j++) {
                    const char * from = raw.data() + j * t->nb[order[1]] + k * t->nb[order[2]] + l * t->nb[3];
                    if (integer || t->type == GGML_TYPE_F32) std::memcpy(row.data(), from, row.size() * 4);
                    else to_float(from, row.data(), row.size());
                    out.data.append((const char *) row.data(), row.size() * 4);
                }
        while (out.shape.size() > 2 && out.shape[0] == 1) out.shape.erase(out.shape.begin());
    }

    void save(const std::string & path) const {  // 8 bytes length, a JSON header, the data
        std::string header;
        size_t end = 0;
        for (const auto & [name, t] : tensors) {
            std::string shape;
            for (int64_t size : t.shape) shape += (shape.empty() ? "" : ",") + std::to_string(size);
            header += (header.empty() ? "{\"" : ",\"") + name + "\":{\"dtype\":\"" + t.dtype + "\",\"shape\":[" + shape +
                "],\"data_offsets\":[" + std::to_string(end) + "," + std::to_string(end + t.data.size()) + "]}";
            end += t.data.size();
        }
        header += header.empty() ? "{}" : "}";
        const uint64_t length = header.size();
        std::ofstream file(path, std::ios::binary);
        file.write((const char *) &length, 8) << header;
        for (const auto & [name, t] : tensors) file.write(t.data.data(), t.data.size());
        if (!file.flush()) throw std::runtime_error("cannot write " + path);
    }
};

inline bool see(const ggml_tensor * t, bool ask, recording & tensors, const char * prefix) {
    const bool named = !std::strchr(t->name, ' ') && std::strncmp(t->name, "node_", 5) && t->name[0];  // no "x (view)"
    if (!ask && named) tensors.add(prefix + std::string(t->name), t);
    return ask ? named : true;
}
inline bool see_tower(ggml_tensor * t, bool ask, void * to) { return see(t, ask, *(recording *) to, "tower."); }
inline bool see_decoder(ggml_tensor * t, bool ask, void * to) { return see(t, ask, *(recording *) to, ""); }

}  // namespace minivl

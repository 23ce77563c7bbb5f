// Run llama.cpp's tower (mtmd) and decoder on one prompt, all of it in one batch, and record every tensor: see docs/recorders.md.
//
//     g++ -std=c++17 -O1 -shared -fPIC -I LLAMA/include -I LLAMA/ggml/include -I LLAMA/tools/mtmd run.cpp -o run.so
#include "record.h"

#include "llama.h"
#include "mtmd.h"

// embeds [T, D]: the prompt's embeddings, in which the rows of each image are replaced by what mtmd makes of it
// pos [4, T]: M-RoPE positions, the fourth 0;  rgb, sides: the images one after the other, and width, height of each
// rows [count]: of embeds, those of image tokens
// returns 0, or where it failed: 1 decoder file, 2 contexts, 3 an image, 4 the tower, 5 decoding, 6 another number of image tokens
extern "C" int record(const char * text, const char * mmproj, float * embeds, const int * pos, int T, int D, const unsigned char * rgb,
                      const int * sides, int images, const int * rows, int count, const char * out) {
    minivl::recording tensors;
    llama_model_params model_params = llama_model_default_params();
    model_params.n_gpu_layers = 0;
    llama_model * model = llama_model_load_from_file(text, model_params);
    if (!model) return 1;
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = (T + 255) / 256 * 256;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.type_k = params.type_v = GGML_TYPE_F32;  // not rounded in the cache
    params.cb_eval = minivl::see_decoder;
    params.cb_eval_user_data = &tensors;
    llama_context * context = llama_init_from_model(model, params);
    mtmd_context_params tower = mtmd_context_params_default();
    tower.use_gpu = tower.warmup = false;
    tower.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    tower.cb_eval = minivl::see_tower;
    tower.cb_eval_user_data = &tensors;
    mtmd_context * vision = mtmd_init_from_file(mmproj, model, tower);
    if (!context || !vision) return 2;
    const std::string marker = mtmd_get_marker(vision);
    for (int i = 0; i < images; rgb += 3 * sides[2 * i] * sides[2 * i + 1], i++) {
        const mtmd_bitmap * bitmap = mtmd_bitmap_init(sides[2 * i], sides[2 * i + 1], rgb);
        mtmd_input_chunks * chunks = mtmd_input_chunks_init();
        const mtmd_input_text prompt = {marker.c_str(), marker.size(), false, true};
        if (mtmd_tokenize(vision, chunks, &prompt, &bitmap, 1)) return 3;
        for (size_t k = 0; k < mtmd_input_chunks_size(chunks); k++) {
            const mtmd_input_chunk * chunk = mtmd_input_chunks_get(chunks, k);
            if (mtmd_input_chunk_get_type(chunk) != MTMD_INPUT_CHUNK_TYPE_IMAGE) continue;
            if (mtmd_encode_chunk(vision, chunk)) return 4;
            const float * features = mtmd_get_output_embd(vision);
            count -= mtmd_input_chunk_get_n_tokens(chunk);
            if (count < 0) return 6;
            for (size_t row = 0; row < mtmd_input_chunk_get_n_tokens(chunk); row++)
                std::memcpy(embeds + (size_t) *rows++ * D, features + row * D, D * sizeof(float));
        }
    }
    if (count) return 6;
    llama_seq_id zero = 0;
    std::vector<int> ones(T, 1);
    std::vector<llama_seq_id *> sequences(T, &zero);
    std::vector<int8_t> wanted(T, 0);
    wanted[T - 1] = 1;
    llama_batch batch{};
    batch.n_tokens = T;
    batch.embd = embeds;
    batch.pos = (llama_pos *) pos;
    batch.n_seq_id = ones.data();
    batch.seq_id = sequences.data();
    batch.logits = wanted.data();
    if (llama_decode(context, batch)) return 5;
    tensors.save(out);
    return 0;
}
